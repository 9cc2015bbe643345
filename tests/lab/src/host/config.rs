//! What a host is to be like.

use std::fmt;
use std::path::{Path, PathBuf};

use lab_agent::plan::{BootPlan, BridgePlan, Cidr, NicPlan};

/// Modules a host has that runs VMs, replicates them and impairs its links.
const DEFAULT_MODULES: [&str; 6] = ["kvm_amd", "tun", "bridge", "veth", "sch_netem", "sch_tbf"];

/// A host to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Its host name, also the name of its folder below `run_dir`.
    pub name: String,
    /// Where its logs go.
    pub run_dir: PathBuf,
    /// RAM in MiB; the initramfs comes out of it.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// NICs, in the order of its PCI slots.
    pub nics: Vec<Nic>,
    /// Kernel modules by name; their dependencies follow by themselves.
    pub modules: Vec<String>,
    /// Tap devices to create in it.
    pub taps: Vec<String>,
    /// Bridges to create in it.
    pub bridges: Vec<BridgePlan>,
    /// Files to lay into its root.
    pub files: Vec<HostFile>,
    /// Words added to its kernel's command line.
    pub kernel_args: Vec<String>,
    /// Words added to the emulator's command line, for what this struct does not say (`-rtc base=...`).
    pub emulator_args: Vec<String>,
}

impl HostConfig {
    /// A host with one vCPU, 1 GiB, the modules a VMM needs, and no NIC.
    pub fn new(name: impl Into<String>, run_dir: &Path) -> Self {
        Self {
            name: name.into(),
            run_dir: run_dir.to_owned(),
            memory_mib: 1024,
            vcpus: 1,
            nics: Vec::new(),
            modules: DEFAULT_MODULES.map(str::to_owned).into(),
            taps: Vec::new(),
            bridges: Vec::new(),
            files: Vec::new(),
            kernel_args: Vec::new(),
            emulator_args: Vec::new(),
        }
    }

    /// What the agent shall do at boot; modules still by name.
    pub(crate) fn boot_plan(&self) -> BootPlan {
        let nic = |nic: &Nic| NicPlan {
            mac: nic.mac.to_string(),
            name: nic.name.clone(),
            addresses: nic.addresses.clone(),
        };
        BootPlan {
            name: self.name.clone(),
            modules: self.modules.clone(),
            nics: self.nics.iter().map(nic).collect(),
            taps: self.taps.clone(),
            bridges: self.bridges.clone(),
        }
    }
}

/// A file to lay into a host's root at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// Absolute path inside the host.
    pub path: String,
    /// Where it comes from.
    pub source: PathBuf,
    /// Its permission bits.
    pub mode: u32,
}

impl HostFile {
    /// A file anyone in the host may run.
    pub fn program(path: &str, source: impl Into<PathBuf>) -> Self {
        Self { path: path.to_owned(), source: source.into(), mode: 0o755 }
    }

    /// A file anyone in the host may read.
    pub fn data(path: &str, source: impl Into<PathBuf>) -> Self {
        Self { path: path.to_owned(), source: source.into(), mode: 0o644 }
    }
}

/// One NIC of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its name inside the host, at most 15 bytes.
    pub name: String,
    /// Its address on the wire, unique in the network.
    pub mac: Mac,
    /// Its IP addresses.
    pub addresses: Vec<Cidr>,
    /// Where its frames go.
    pub backend: NicBackend,
}

/// Where a NIC's frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicBackend {
    /// A tap device in the namespace of the thread that starts the host.
    Tap {
        /// Name of the device.
        device: String,
    },
    /// Datagrams between two Unix sockets: a wire between exactly two hosts that needs no rights.
    Datagrams {
        /// This end's socket, created by the emulator.
        local: PathBuf,
        /// The other end's.
        remote: PathBuf,
    },
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
