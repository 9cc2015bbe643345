//! What two nodes must agree on about a VM before one can take over from the other.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{BootSpec, NetSpec, Policies, SpecError, VmSpec};

/// A spec without what belongs to a node: tap names, console, paths. Kernel and initrd count by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecFingerprint {
    /// Name of the VM.
    pub name: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The processor they look like.
    pub cpu: String,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Digest of the kernel file (XXH3, 128 bits, hexadecimal); of a VM that boots from its disk, which entry.
    pub kernel: String,
    /// Digest of the initrd.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// Addresses and slots of the network cards, in order.
    pub macs: Vec<String>,
    /// The other devices, as far as a guest can tell them apart.
    pub devices: Vec<String>,
    /// What to do when the guest fails.
    pub policies: Policies,
}

impl VmSpec {
    /// The spec's fingerprint; reads kernel and initrd.
    ///
    /// # Errors
    /// [`SpecError::File`] when one of them cannot be read.
    pub fn fingerprint(&self) -> Result<SpecFingerprint, SpecError> {
        Ok(SpecFingerprint {
            name: self.name.clone(),
            vcpus: self.vcpus,
            cpu: self.cpu.to_string(),
            ram_bytes: self.ram_bytes,
            kernel: match &self.boot {
                BootSpec::Kernel { kernel, .. } => digest("kernel", kernel)?,
                BootSpec::Firmware(firmware) => digest("firmware", firmware)?,
                BootSpec::Disk { entry } => format!("disk, {}", entry.as_deref().unwrap_or("default entry")),
            },
            initrd: match &self.boot {
                BootSpec::Kernel { initrd: Some(initrd), .. } => Some(digest("initrd", initrd)?),
                _ => None,
            },
            cmdline: self.cmdline.clone(),
            macs: Vec::new(),
            devices: Vec::new(),
            policies: self.policies,
        }
        .with_devices_of(self))
    }
}

impl SpecFingerprint {
    /// Names what differs, as "field: mine, theirs".
    pub fn diff(&self, other: &SpecFingerprint) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |field: &str, mine: String, theirs: String| {
            if mine != theirs {
                found.push(format!("{field}: {mine} here, {theirs} there"));
            }
        };
        compare("name", self.name.clone(), other.name.clone());
        compare("vcpus", self.vcpus.to_string(), other.vcpus.to_string());
        compare("cpu", self.cpu.clone(), other.cpu.clone());
        compare("ram_bytes", self.ram_bytes.to_string(), other.ram_bytes.to_string());
        compare("kernel digest", self.kernel.clone(), other.kernel.clone());
        compare("initrd digest", format!("{:?}", self.initrd), format!("{:?}", other.initrd));
        compare("cmdline", format!("{:?}", self.cmdline), format!("{:?}", other.cmdline));
        compare("policies", format!("{:?}", self.policies), format!("{:?}", other.policies));
        found.extend(only("devices", &self.devices, &other.devices));
        found.extend(only("network cards", &self.macs, &other.macs));
        found
    }

    /// The same machine with the cards and other devices of `spec`.
    pub(crate) fn with_devices_of(self, spec: &VmSpec) -> SpecFingerprint {
        let slots = spec.slots();
        let card = |(nic, slot): (&NetSpec, &u16)| {
            let kind = if nic.removable { " removable" } else { "" };
            format!("{}{kind} in slot {slot}", nic.mac)
        };
        SpecFingerprint {
            macs: spec.net.iter().zip(&slots.net).map(card).collect(),
            devices: spec.devices.describe(&slots.disks),
            ..self
        }
    }
}

/// What of a list is on one side only, or what differs in order.
fn only(what: &str, mine: &[String], theirs: &[String]) -> Option<String> {
    let lacking = |from: &[String], all: &[String]| {
        let lacking: Vec<&str> = all.iter().filter(|one| !from.contains(one)).map(String::as_str).collect();
        (!lacking.is_empty()).then(|| lacking.join(", "))
    };
    match (lacking(mine, theirs), lacking(theirs, mine)) {
        (None, None) if mine == theirs => None,
        (None, None) => Some(format!("{what}: {} here, {} there", mine.join(", "), theirs.join(", "))),
        (Some(here), None) => Some(format!("{what} missing here: {here}")),
        (None, Some(there)) => Some(format!("{what} missing there: {there}")),
        (Some(here), Some(there)) => Some(format!("{what} missing here: {here}, and there: {there}")),
    }
}

fn digest(field: &'static str, path: &Path) -> Result<String, SpecError> {
    digest_of(path).map_err(|e| SpecError::File {
        field,
        path: path.to_owned(),
        reason: format!("cannot be read: {e}"),
        remedy: "check path and permissions",
    })
}

fn digest_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Xxh3::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(format!("{:032x}", hasher.digest128())),
            n => hasher.update(&chunk[..n]),
        }
    }
}
