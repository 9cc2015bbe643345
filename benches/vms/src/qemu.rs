//! QEMU's microvm, at its best: no firmware but qboot, no device that the guest does not use.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::qmp::Qmp;
use crate::stop::Stop;
use crate::{Begin, Prepared, Running, Setup, Vmm};

/// What is started.
pub const PROGRAM: &str = "qemu-system-x86_64";

pub(crate) const QMP: &str = "qmp";

/// Name of the memory backend, which names the memfd.
const RAM_MEMFD: &str = "memory-backend-memfd";

/// A choice that QEMU leaves to its user, of which nobody can say beforehand which is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// None of them matters.
    Plain,
    /// The kernel moves frames.
    VhostOn,
    /// QEMU moves frames.
    VhostOff,
    /// The disk has a thread of its own.
    IoThread,
}

impl Flavour {
    /// What the peer's name says of it.
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::VhostOn => " vhost=on",
            Self::VhostOff => " vhost=off",
            Self::IoThread => " iothread",
        }
    }

    /// Whether this host offers what it needs.
    pub fn possible(self) -> bool {
        self != Self::VhostOn || Path::new("/dev/vhost-net").exists()
    }
}

/// QEMU with the native guest.
#[derive(Clone, Debug)]
pub struct Qemu {
    guest: PathBuf,
    name: String,
    flavour: Flavour,
}

impl Qemu {
    /// QEMU of a version like `7.2.22`.
    pub fn new(guest: &Path, version: &str, flavour: Flavour) -> Self {
        Self { guest: guest.to_owned(), name: name(version, flavour), flavour }
    }

    fn machine(setup: &Setup<'_>) -> String {
        let bus = if setup.has_devices() { "pcie=on" } else { "acpi=off" };
        let ram = if setup.named_ram { ",memory-backend=ram" } else { "" };
        format!("microvm,{bus},pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off{ram}")
    }

    fn words(&self, setup: &Setup<'_>, folder: &Path, tap: Option<&str>) -> Vec<String> {
        let ram = format!("{}M", setup.ram_mib);
        let mut words: Vec<String> = ["-enable-kvm", "-nodefaults", "-no-user-config", "-no-reboot"]
            .into_iter()
            .chain(["-display", "none", "-serial", "stdio", "-bios", "qboot.rom"])
            // Needed where KVM offers a bit of this register that it does not let QEMU set.
            .chain(["-cpu", "host,-arch-capabilities", "-m", &ram])
            .map(str::to_owned)
            .collect();
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        add("-M", Self::machine(setup));
        if setup.named_ram {
            add("-object", format!("memory-backend-memfd,id=ram,size={ram},share=on"));
        }
        add("-kernel", self.guest.display().to_string());
        add("-append", setup.cmdline());
        if setup.saves_to.is_some() {
            add("-qmp", format!("unix:{},server=on,wait=off", folder.join(QMP).display()));
        }
        words.extend(tap.map(|_| "-mem-prealloc".to_owned()));
        words.extend(self.card(setup, tap));
        words.extend(self.disk(setup));
        words
    }

    fn card(&self, setup: &Setup<'_>, tap: Option<&str>) -> Vec<String> {
        let Some(wire) = setup.wire else { return Vec::new() };
        let vhost = if self.flavour == Flavour::VhostOn { "on" } else { "off" };
        let netdev =
            format!("tap,id=net,ifname={},script=no,downscript=no,vhost={vhost}", tap.unwrap_or(wire.tap()));
        let device = format!("virtio-net-pci,netdev=net,mac={},disable-legacy=on", wire.mac());
        ["-netdev".to_owned(), netdev, "-device".to_owned(), device].into()
    }

    /// With a tap of its own it is a destination: its memory is there before anything comes.
    pub(crate) fn prepare_on(
        &self,
        setup: &Setup<'_>,
        begin: Begin<'_>,
        folder: &Path,
        tap: Option<&str>,
    ) -> Result<Prepared> {
        let mut command = Command::new(PROGRAM);
        command.args(self.words(setup, folder, tap));
        let mut inherited = Vec::new();
        if let Begin::Restore(path) = begin {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            command.arg("-incoming").arg(format!("fd:{}", file.as_raw_fd()));
            inherited.push(file);
        }
        Ok(Prepared { command, inherited })
    }

    fn disk(&self, setup: &Setup<'_>) -> Vec<String> {
        let Some(disk) = &setup.disk else { return Vec::new() };
        let thread = self.flavour == Flavour::IoThread;
        let drive = format!(
            "if=none,id=disk,file={},format=raw,cache=none,aio=io_uring",
            // A comma in a value is written twice.
            disk.display().to_string().replace(',', ",,")
        );
        let mut device = "virtio-blk-pci,drive=disk,num-queues=1,disable-legacy=on".to_owned();
        let mut words = vec!["-drive".to_owned(), drive];
        if thread {
            words.extend(["-object".to_owned(), "iothread,id=io".to_owned()]);
            device += ",iothread=io";
        }
        words.extend(["-device".to_owned(), device]);
        words
    }
}

impl Vmm for Qemu {
    fn name(&self) -> &str {
        &self.name
    }

    fn ram_memfd(&self) -> &'static str {
        RAM_MEMFD
    }

    fn prepare(&self, setup: &Setup<'_>, begin: Begin<'_>, folder: &Path) -> Result<Prepared> {
        self.prepare_on(setup, begin, folder, None)
    }

    fn save(&self, running: Running, file: &Path, stop: &Stop) -> Result<()> {
        let saved =
            Qmp::connect(&running.folder().join(QMP)).and_then(|mut qmp| qmp.migrate_to_file(file, stop));
        running.explain(saved.context("cannot save the guest"))
    }
}

/// `qemu-7.2 microvm` and what is special about it.
pub fn name(version: &str, flavour: Flavour) -> String {
    let mut parts = version.splitn(3, '.');
    let short = [parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>().join(".");
    let dash = if short.is_empty() { "" } else { "-" };
    format!("qemu{dash}{short} microvm{}", flavour.suffix())
}

/// The version of the installed QEMU, like `7.2.22`; `None` if there is none.
pub fn version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(told: &str) -> Option<String> {
    let (_, rest) = told.split_once("version ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu(flavour: Flavour) -> Qemu {
        Qemu::new(Path::new("guest"), "7.2.22", flavour)
    }

    fn line(flavour: Flavour, setup: &Setup<'_>) -> String {
        qemu(flavour).words(setup, Path::new("folder"), None).join(" ")
    }

    #[test]
    fn names_say_version_and_flavour() {
        assert_eq!(qemu(Flavour::Plain).name(), "qemu-7.2 microvm");
        assert_eq!(qemu(Flavour::VhostOff).name(), "qemu-7.2 microvm vhost=off");
        assert_eq!(name("", Flavour::IoThread), "qemu microvm iothread");
    }

    #[test]
    fn the_version_is_found_in_what_qemu_says() {
        let told = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)\n";
        assert_eq!(parse_version(told).as_deref(), Some("7.2.22"));
        assert_eq!(parse_version("no such thing"), None);
    }

    #[test]
    fn a_machine_has_no_more_than_it_needs() {
        let plain = line(Flavour::Plain, &Setup { ram_mib: 256, ..Setup::default() });
        assert!(plain.contains("microvm,acpi=off") && plain.contains("-m 256M"), "{plain}");
        for absent in ["-device", "-qmp", "memfd", "-incoming"] {
            assert!(!plain.contains(absent), "{absent} in {plain}");
        }
    }

    #[test]
    fn a_disk_is_opened_as_qemu_is_best_at() {
        let setup = Setup { disk: Some("a,b.raw".into()), ..Setup::default() };
        let plain = line(Flavour::Plain, &setup);
        assert!(plain.contains("file=a,,b.raw,format=raw,cache=none,aio=io_uring"), "{plain}");
        assert!(plain.contains("pcie=on") && !plain.contains("iothread"), "{plain}");
        assert!(
            line(Flavour::IoThread, &setup)
                .contains("-object iothread,id=io -device virtio-blk-pci,drive=disk")
        );
    }
}
