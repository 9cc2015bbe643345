//! The VM spec file: what a VM is, and what it is attached to on this node.
//!
//! ```toml
//! name = "shop"
//! vcpus = 2
//! cpu = "x86-64-v3"             # optional: "host" (default), or "x86-64-v1" to "-v4", which different hosts can be
//! ram_mib = 512                 # or ram_bytes
//! huge_pages = "advise"         # optional: "none" (default), "advise" or "hugetlb"
//! kernel = "vmlinuz"            # relative paths are relative to this file; without kernel, the first disk's own
//! initrd = "initrd.img"         # optional                      # boot entries are followed
//! cmdline = "console=ttyS0"     # optional
//! serial = "stdio"              # optional: "stdio", "null" or a file; a protected VM always has serial.log
//! boot_entry = "Debian"         # optional, without kernel: title, id or number of the disk's boot entry
//! firmware = "firmware.elf"     # instead of kernel: PVH firmware
//! on_panic = "stop"             # optional, each: "stop" (default), "reset" or "pause"
//! on_triple_fault = "reset"
//! on_watchdog = "reset"
//!
//! [[net]]
//! tap = "tap0"                  # or "fd:N": an open tap that this process inherited
//! mac = "02:00:00:00:00:01"
//! offload = true                # optional: guest and host leave each other checksums and segmentation (default)
//! queues = 2                    # optional, 1 to 8: pairs of queues (default 1); several need a tap made with multi_queue
//! bytes_per_s = 12500000        # optional, each direction: no limit by default
//! packets_per_s = 10000
//! removable = true              # optional: it can be detached while the VM runs; guests then name it by its slot (ens1)
//! slot = 1                      # optional: PCI slot, 1 to 27 (default: the lowest free)
//!
//! [[disk]]
//! path = "debian.qcow2"         # image file or block device
//! format = "qcow2"              # optional: "raw" or "qcow2"; by default what the name ends in
//! readonly = false              # this and the rest are optional
//! serial = "disk0"
//! cache = "writeback"           # or "direct"
//! queues = 2                    # default: one per vCPU
//! iops = 1000                   # default: no limit
//! bytes_per_s = 100000000
//! slot = 2
//!
//! [vsock]
//! cid = 3
//! socket = "vsock.sock"
//!
//! [[console]]
//! name = "org.example.port"
//! socket = "console.sock"
//! ```
//! `rng = true` adds an entropy source, `balloon = true` a balloon.

mod cpu;
mod devices;
mod error;
mod fingerprint;
mod kernel;
mod mac;
mod memory;
mod net;
mod parse;
mod slots;
mod table;
mod written;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use cpu::CpuModel;
pub use devices::{ConsoleSpec, DeviceSpecs, DiskCache, DiskFormat, DiskSpec, VsockSpec};
pub use error::SpecError;
pub use fingerprint::SpecFingerprint;
pub use mac::MacAddress;
pub use memory::HugePages;
pub use net::NetSpec;
#[cfg(feature = "fuzzing")]
pub use parse::{fuzz_spec, seeds_spec};
pub use slots::Slots;
pub use table::{DeviceTable, MISSING_BASE};

/// A VM spec whose values have all been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// Name, the same on every node.
    pub name: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The processor they look like.
    pub cpu: CpuModel,
    /// Bytes of RAM, a multiple of the page size.
    pub ram_bytes: u64,
    /// What it is made of.
    pub huge_pages: HugePages,
    /// What it boots.
    pub boot: BootSpec,
    /// Kernel command line; booted from a disk, what is added to the boot entry's.
    pub cmdline: String,
    /// Network cards.
    pub net: Vec<NetSpec>,
    /// Everything else the guest finds.
    pub devices: DeviceSpecs,
    /// Where console output goes.
    pub serial: SerialSpec,
    /// What to do when the guest fails.
    pub policies: Policies,
}

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootSpec {
    /// A kernel of this node's file system: a bzImage, or an ELF file with a PVH entry.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
    },
    /// What the first disk's own boot entries name.
    Disk {
        /// Title, id or number of the entry; the disk's default if `None`.
        entry: Option<String>,
    },
    /// Firmware with a PVH entry, which finds its way by itself.
    Firmware(PathBuf),
}

/// Where console output goes on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SerialSpec {
    /// Not said: as `Stdio` for a VM without protection, as `Null` for one whose run folder has the log.
    #[default]
    Unsaid,
    /// Standard output; input from standard input.
    Stdio,
    /// Nowhere.
    Null,
    /// Appended to a file.
    File(PathBuf),
}

/// What to do about an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// End the VM.
    #[default]
    Stop,
    /// Boot it again.
    Reset,
    /// Leave it standing for inspection.
    Pause,
}

/// What to do when the guest fails. The machine only reports; whoever runs it acts, after committing what led up
/// to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// The guest kernel reports a panic.
    pub on_panic: Policy,
    /// The guest triple-faults.
    pub on_triple_fault: Policy,
    /// The guest did not feed its watchdog.
    pub on_watchdog: Policy,
}
