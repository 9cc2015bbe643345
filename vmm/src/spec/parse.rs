//! From a TOML file to a [`VmSpec`] that cannot be wrong.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::net::{WrittenNet, check_net};
use super::slots::check_slots;
use super::table::MISSING_BASE;
use super::written::{WrittenConsole, WrittenDisk, WrittenVsock, check_consoles, check_disks};
use super::{
    BootSpec, CpuModel, DeviceSpecs, HugePages, Policies, Policy, SerialSpec, SpecError, VmSpec, kernel,
};
use crate::limits::{
    CMDLINE_BYTES_MAX, NAME_BYTES_MAX, RAM_BYTES_MAX, RAM_BYTES_MIN, SPEC_BYTES_MAX, VCPUS_MAX,
};
use crate::memory::PAGE_BYTES;

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default = "one")]
    vcpus: i64,
    cpu: Option<String>,
    ram_mib: Option<i64>,
    ram_bytes: Option<i64>,
    #[serde(default)]
    huge_pages: HugePages,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    boot_entry: Option<String>,
    firmware: Option<PathBuf>,
    #[serde(default)]
    cmdline: String,
    serial: Option<String>,
    #[serde(default)]
    on_panic: Policy,
    #[serde(default)]
    on_triple_fault: Policy,
    #[serde(default)]
    on_watchdog: Policy,
    #[serde(default)]
    net: Vec<WrittenNet>,
    #[serde(default)]
    disk: Vec<WrittenDisk>,
    vsock: Option<WrittenVsock>,
    #[serde(default)]
    console: Vec<WrittenConsole>,
    #[serde(default)]
    rng: bool,
    #[serde(default)]
    balloon: bool,
}

fn one() -> i64 {
    1
}

impl VmSpec {
    /// Reads and checks a spec file and the kernel it names. Relative paths in it are relative to the file.
    ///
    /// # Errors
    /// [`SpecError`] naming file, field, reason and remedy.
    pub fn load(path: &Path) -> Result<VmSpec, SpecError> {
        let read = |source| SpecError::Read { path: path.to_owned(), source };
        let bytes = fs::metadata(path).map_err(read)?.len();
        if bytes > SPEC_BYTES_MAX {
            return Err(SpecError::TooLarge { path: path.to_owned(), bytes });
        }
        Self::parse(&fs::read_to_string(path).map_err(read)?, path)
    }

    /// As [`VmSpec::load`], with the file's content at hand and without a file: relative paths are relative to `folder`, or
    /// refused without one.
    ///
    /// # Errors
    /// [`SpecError`] naming field, reason and remedy.
    pub fn parse_in(text: &str, folder: Option<&Path>) -> Result<VmSpec, SpecError> {
        if text.len() as u64 > SPEC_BYTES_MAX {
            return Err(SpecError::TooLarge { path: "(request)".into(), bytes: text.len() as u64 });
        }
        let name = folder.unwrap_or(Path::new("/")).join("(request)");
        if folder.is_none() {
            let written: Written = toml::from_str(text)
                .map_err(|e| SpecError::Syntax { path: name.clone(), source: Box::new(e) })?;
            written.refuse_relative()?;
        }
        Self::parse(text, &name)
    }

    /// As [`VmSpec::load`], with the file's content at hand; `path` is for messages and relative paths.
    ///
    /// # Errors
    /// [`SpecError`] naming file, field, reason and remedy.
    pub fn parse(text: &str, path: &Path) -> Result<VmSpec, SpecError> {
        let written: Written = toml::from_str(text)
            .map_err(|e| SpecError::Syntax { path: path.to_owned(), source: Box::new(e) })?;
        let spec = written.check(path.parent().unwrap_or(Path::new("")))?;
        check_slots(&spec)?;
        match &spec.boot {
            BootSpec::Kernel { kernel, initrd } => {
                kernel::check("kernel", kernel)?;
                initrd.as_deref().map_or(Ok(()), check_initrd)?;
            }
            BootSpec::Firmware(firmware) => kernel::check("firmware", firmware)?,
            // Looked at when the disk is opened.
            BootSpec::Disk { .. } => {}
        }
        Ok(spec)
    }
}

impl Written {
    /// Nothing says what a relative path is relative to.
    fn refuse_relative(&self) -> Result<(), SpecError> {
        let serial = self.serial.as_deref().filter(|said| !matches!(*said, "stdio" | "null"));
        let files = [("kernel", &self.kernel), ("initrd", &self.initrd), ("firmware", &self.firmware)];
        let files = files.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?)));
        let disks = self.disk.iter().map(|disk| ("disk.path", disk.path.as_path()));
        let sockets = self.vsock.iter().map(|vsock| ("vsock.socket", vsock.socket.as_path()));
        let consoles = self.console.iter().map(|port| ("console.socket", port.socket.as_path()));
        let serial = serial.map(|path| ("serial", Path::new(path)));
        let mut all = files.chain(disks).chain(sockets).chain(consoles).chain(serial);
        match all.find(|(_, path)| path.is_relative()) {
            None => Ok(()),
            Some((name, path)) => {
                Err(field(name, path.display(), MISSING_BASE, "make it absolute, or name a folder"))
            }
        }
    }

    fn check(self, base: &Path) -> Result<VmSpec, SpecError> {
        let boot = self.check_boot(base)?;
        Ok(VmSpec {
            name: check_name(self.name)?,
            vcpus: check_vcpus(self.vcpus)?,
            cpu: check_cpu(self.cpu)?,
            ram_bytes: check_huge(check_ram(self.ram_mib, self.ram_bytes)?, self.huge_pages)?,
            huge_pages: self.huge_pages,
            boot,
            cmdline: check_cmdline(self.cmdline)?,
            net: check_net(&self.net)?,
            devices: DeviceSpecs {
                disks: check_disks(self.disk, base, check_vcpus(self.vcpus)?)?,
                vsock: self.vsock.map(|vsock| vsock.check(base)).transpose()?,
                consoles: check_consoles(self.console, base)?,
                rng: self.rng,
                balloon: self.balloon,
            },
            serial: match self.serial.as_deref() {
                None => SerialSpec::Unsaid,
                Some("stdio") => SerialSpec::Stdio,
                Some("null") => SerialSpec::Null,
                Some(path) => SerialSpec::File(base.join(path)),
            },
            policies: Policies {
                on_panic: self.on_panic,
                on_triple_fault: self.on_triple_fault,
                on_watchdog: self.on_watchdog,
            },
        })
    }
}

pub(super) fn field(
    name: &'static str,
    value: impl ToString,
    reason: impl Into<String>,
    remedy: &'static str,
) -> SpecError {
    SpecError::Field { field: name, value: value.to_string(), reason: reason.into(), remedy }
}

impl Written {
    fn check_boot(&self, base: &Path) -> Result<BootSpec, SpecError> {
        let only_with = |name: &'static str, value: String, what: &str| {
            Err(field(name, value, format!("is given {what}"), "remove it"))
        };
        let shown = |path: &Path| path.display().to_string();
        match (&self.kernel, &self.firmware) {
            (Some(_), Some(firmware)) => {
                return only_with("firmware", shown(firmware), "together with a kernel");
            }
            (Some(_), None) => {}
            (None, _) => {
                if let Some(initrd) = &self.initrd {
                    return only_with("initrd", shown(initrd), "without a kernel");
                }
            }
        }
        if let (true, Some(entry)) = (self.kernel.is_some() || self.firmware.is_some(), &self.boot_entry) {
            return only_with("boot_entry", entry.clone(), "together with a kernel or firmware");
        }
        match (&self.kernel, &self.firmware) {
            (Some(kernel), _) => Ok(BootSpec::Kernel {
                kernel: base.join(kernel),
                initrd: self.initrd.as_ref().map(|path| base.join(path)),
            }),
            (None, Some(firmware)) => Ok(BootSpec::Firmware(base.join(firmware))),
            (None, None) if !self.disk.is_empty() => Ok(BootSpec::Disk { entry: self.boot_entry.clone() }),
            (None, None) => {
                let remedy = "name a kernel, or a disk to boot from";
                Err(field("kernel", "", "is missing, and there is no disk", remedy))
            }
        }
    }
}

fn check_name(name: String) -> Result<String, SpecError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(legal) {
        let reason = format!("is not 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.'");
        return Err(field("name", name, reason, "choose a plain name"));
    }
    Ok(name)
}

fn check_vcpus(vcpus: i64) -> Result<u8, SpecError> {
    match u8::try_from(vcpus) {
        Ok(n @ 1..=VCPUS_MAX) => Ok(n),
        _ => Err(field(
            "vcpus",
            vcpus,
            format!("is not between 1 and {VCPUS_MAX}"),
            "choose a number in that range",
        )),
    }
}

fn check_cpu(said: Option<String>) -> Result<CpuModel, SpecError> {
    let remedy = "there are host, x86-64-v1, x86-64-v2, x86-64-v3 and x86-64-v4";
    said.map_or(Ok(CpuModel::Host), |said| {
        said.parse().map_err(|reason: String| field("cpu", said, reason, remedy))
    })
}

fn check_ram(mib: Option<i64>, bytes: Option<i64>) -> Result<u64, SpecError> {
    let (name, value, bytes) = match (mib, bytes) {
        (Some(mib), None) => ("ram_mib", mib, u64::try_from(mib).ok().and_then(|m| m.checked_mul(1 << 20))),
        (None, Some(bytes)) => ("ram_bytes", bytes, u64::try_from(bytes).ok()),
        (None, None) => return Err(field("ram_mib", "", "is missing", "say how much RAM the VM has")),
        (Some(mib), Some(_)) => {
            return Err(field("ram_mib", mib, "is given together with ram_bytes", "keep one of the two"));
        }
    };
    let bytes = bytes.unwrap_or(0);
    if bytes < RAM_BYTES_MIN {
        let reason = format!("is less than {} MiB", RAM_BYTES_MIN >> 20);
        return Err(field(name, value, reason, "give the VM more RAM"));
    }
    if bytes > RAM_BYTES_MAX {
        let reason = format!("is more than {} GiB", RAM_BYTES_MAX >> 30);
        return Err(field(name, value, reason, "give the VM less RAM"));
    }
    if bytes % PAGE_BYTES as u64 != 0 {
        return Err(field(name, value, "is not a multiple of the page size, 4096", "round it up"));
    }
    Ok(bytes)
}

fn check_huge(bytes: u64, huge: HugePages) -> Result<u64, SpecError> {
    if huge == HugePages::Hugetlb && !bytes.is_multiple_of(2 << 20) {
        return Err(field(
            "huge_pages",
            "hugetlb",
            "needs RAM in whole pages of 2 MiB",
            "round ram_mib up to even",
        ));
    }
    Ok(bytes)
}

fn check_cmdline(cmdline: String) -> Result<String, SpecError> {
    if cmdline.len() >= CMDLINE_BYTES_MAX || cmdline.bytes().any(|b| b == 0) {
        let reason = format!("is longer than {} bytes or has a NUL in it", CMDLINE_BYTES_MAX - 1);
        return Err(field("cmdline", cmdline, reason, "shorten it"));
    }
    Ok(cmdline)
}

fn check_initrd(path: &Path) -> Result<(), SpecError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err("is not a file".to_owned()),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
    .map_err(|reason| SpecError::File {
        field: "initrd",
        path: path.to_owned(),
        reason,
        remedy: "check path and permissions",
    })
}

/// Reads `data` as a spec file, without looking at the files it names; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub fn fuzz_spec(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(written) = toml::from_str::<Written>(&text) else { return };
    let Ok(spec) = written.check(Path::new("/base")) else { return };
    assert!((1..=VCPUS_MAX).contains(&spec.vcpus));
    assert!((RAM_BYTES_MIN..=RAM_BYTES_MAX).contains(&spec.ram_bytes));
    assert!(spec.cmdline.len() < CMDLINE_BYTES_MAX && spec.name.len() <= NAME_BYTES_MAX);
    if matches!(spec.boot, BootSpec::Disk { .. }) {
        spec.fingerprint().expect("no file is read for it");
    }
}

/// A spec with everything in it, and a small one; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub fn seeds_spec() -> Vec<Vec<u8>> {
    let whole = "name = \"shop\"\nvcpus = 2\ncpu = \"x86-64-v3\"\nram_mib = 512\nhuge_pages = \"advise\"\nkernel = \"vmlinuz\"\n\
        initrd = \"initrd.img\"\ncmdline = \"console=ttyS0\"\nserial = \"stdio\"\non_panic = \"stop\"\non_triple_fault = \"reset\"\n\
        on_watchdog = \"pause\"\nrng = true\nballoon = true\n[[net]]\ntap = \"tap0\"\nmac = \"02:00:00:00:00:01\"\noffload = true\n\
        queues = 2\nbytes_per_s = 12500000\npackets_per_s = 10000\n[[disk]]\npath = \"debian.qcow2\"\nformat = \"qcow2\"\n\
        readonly = false\nserial = \"disk0\"\ncache = \"writeback\"\nqueues = 2\niops = 1000\nbytes_per_s = 100000000\n\
        [vsock]\ncid = 3\nsocket = \"vsock.sock\"\n[[console]]\nname = \"org.example.port\"\nsocket = \"console.sock\"\n";
    let disk = "name = \"a\"\nram_bytes = 16777216\nboot_entry = \"x\"\n[[disk]]\npath = \"a.raw\"\ncache = \"direct\"\n";
    vec![whole.as_bytes().to_vec(), disk.as_bytes().to_vec()]
}
