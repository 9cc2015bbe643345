//! The devices beside network cards and the serial console.

use std::path::PathBuf;

/// Devices of a VM that are not there unless they are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSpecs {
    /// Disks, in order: the guest's vda, vdb, ...
    pub disks: Vec<DiskSpec>,
    /// Sockets between host and guest.
    pub vsock: Option<VsockSpec>,
    /// Ports of the paravirtual console. The first is the guest's hvc0, further ones are named ports.
    pub consoles: Vec<ConsoleSpec>,
    /// An entropy source.
    pub rng: bool,
    /// A balloon, through which memory is taken back and the guest reports free pages.
    pub balloon: bool,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Image file or block device on this node.
    pub path: PathBuf,
    /// How the image holds the disk.
    pub format: DiskFormat,
    /// The guest cannot write.
    pub readonly: bool,
    /// What the guest knows it by; at most 20 bytes of ASCII.
    pub serial: String,
    /// Whether the host's page cache is passed by.
    pub cache: DiskCache,
    /// Request queues, at least one.
    pub queues: u16,
    /// Most requests per second, with a second's worth of burst.
    pub iops: Option<u64>,
    /// Most bytes per second, with a second's worth of burst.
    pub bytes_per_s: Option<u64>,
    /// PCI slot; the lowest that is free if `None`.
    pub slot: Option<u16>,
}

/// Format of a disk image. Never guessed from what the guest can write: a guest of a raw disk could otherwise turn
/// it into an image that names any file of the host as its backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The file is the disk.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// Whether the host's page cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskCache {
    /// Through the page cache; a flush makes writes durable.
    #[default]
    Writeback,
    /// Past it (`O_DIRECT`).
    Direct,
}

/// The socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// Context id of the guest, from 3 on.
    pub cid: u32,
    /// Unix socket through which programs of the host reach ports of the guest (a line `CONNECT PORT` first). The
    /// guest reaches port N of the host at the socket of that name with `_N` appended.
    pub socket: PathBuf,
}

/// One port of the paravirtual console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// What the guest knows the port by.
    pub name: String,
    /// Unix socket at which one client at a time is connected with the port.
    pub socket: PathBuf,
}

impl DeviceSpecs {
    /// One line per device: what a guest would notice if it went on with another.
    pub(super) fn describe(&self, slots: &[u16]) -> Vec<String> {
        let mode = |readonly: bool| if readonly { "read-only" } else { "writable" };
        let disk = |(d, slot): (&DiskSpec, &u16)| {
            format!("disk {} {} {} queues in slot {slot}", d.serial, mode(d.readonly), d.queues)
        };
        let disks = self.disks.iter().zip(slots).map(disk);
        let vsock = self.vsock.iter().map(|vsock| format!("vsock {}", vsock.cid));
        let consoles = self.consoles.iter().map(|port| format!("console {}", port.name));
        let flags = [("rng", self.rng), ("balloon", self.balloon)];
        let flags = flags.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned());
        disks.chain(vsock).chain(consoles).chain(flags).collect()
    }
}
