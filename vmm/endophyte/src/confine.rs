//! Confining this process to what its VM needs: what must be open before, which files stay within reach, and who is told when
//! threads start.
//!
//! Threads inherit their rights from the one that starts them, so [`enter`] comes before the first: after the spec, the key, the
//! run folder and the host's devices have been opened, before signals, runtimes and the machine. Machines are built afterwards,
//! again and again by a passive: they find `/dev/kvm` and the taps open, and everything else by path.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use endophyte_sandbox::{Cgroup, Files, Kind, Network, Plan, confine};
use endophyte_snapshot::lazy::Userfault;
use endophyte_vmm::devices::block::journal_of;
use endophyte_vmm::devices::net::Tap;
use endophyte_vmm::doctor::{Check, Verdict};
use endophyte_vmm::machine::keep_kvm_open;
use endophyte_vmm::spec::{BootSpec, DiskFormat, SerialSpec, VmSpec};
use endophyte_vmm::threads::{self, ThreadKind};

use crate::cli::ProcessArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::snapshot;

/// The taps of a VM, open for as long as its process.
#[derive(Debug)]
pub(crate) struct Taps(Vec<Arc<Tap>>);

impl Taps {
    fn open(spec: &VmSpec) -> Result<Self, Exit> {
        let taps = spec.net.iter().map(|card| Tap::open(card).map(Arc::new)).collect::<Result<_, _>>();
        taps.map(Self).or_exit(Failure::Host)
    }

    /// One per network card, for one machine.
    pub(crate) fn again(&self) -> Vec<Arc<Tap>> {
        self.0.clone()
    }
}

/// What a role needs besides what its spec says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Needs<'a> {
    /// A protected VM's folder; it has peers, too.
    pub(crate) run_dir: Option<&'a Path>,
    /// The snapshot it goes on from.
    pub(crate) snapshot: Option<&'a Path>,
    /// Its memory comes as it is touched.
    pub(crate) faults: bool,
    /// Another process migrates its VM here.
    pub(crate) peers: bool,
    /// Taps may be opened later, by name.
    pub(crate) taps: bool,
    /// It promises what its disks will hold.
    pub(crate) journals: bool,
}

/// What was opened before the sandbox was entered.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) taps: Taps,
    /// If faults are to be served and the kernel lets us.
    pub(crate) userfault: Option<Userfault>,
}

/// Folders in which files may be made; unset without a sandbox.
static REACH: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Whether taps can still be opened by their names.
static TAPS: OnceLock<bool> = OnceLock::new();

/// Opens the devices of a VM and enters the sandbox.
pub(crate) fn enter(spec: &VmSpec, args: &ProcessArgs, needs: Needs<'_>) -> Result<Opened, Exit> {
    keep_kvm_open().or_exit(Failure::Host)?;
    let taps = Taps::open(spec)?;
    let userfault = if needs.faults { snapshot::userfault() } else { None };
    let opened = Opened { taps, userfault };
    if args.no_sandbox {
        tracing::warn!(
            "--no-sandbox: a guest that breaks out of its machine can do all that this process' user can"
        );
        return Ok(opened);
    }
    let reach = folders_in_reach(args, needs).or_exit(Failure::Host)?;
    endophyte_sandbox::enter(&plan(spec, args, needs)).or_exit(Failure::Host)?;
    let _ = (REACH.set(reach), TAPS.set(needs.taps));
    threads::on_start(|kind| confine(kind_of(kind)));
    Ok(opened)
}

fn kind_of(thread: ThreadKind) -> Kind {
    match thread {
        ThreadKind::Vcpu => Kind::Vcpu,
        ThreadKind::Devices => Kind::Devices,
        ThreadKind::Disk => Kind::Disk,
        ThreadKind::Balloon => Kind::Balloon,
        ThreadKind::Boot => Kind::Boot,
        ThreadKind::Faults => Kind::Faults,
    }
}

/// They must be there: a rule is about a folder, not about its name.
fn folders_in_reach(args: &ProcessArgs, needs: Needs<'_>) -> anyhow::Result<Vec<PathBuf>> {
    let reach = |folder: &PathBuf| {
        let whole = folder.canonicalize().and_then(|found| {
            if found.is_dir() { Ok(found) } else { Err(io::ErrorKind::NotADirectory.into()) }
        });
        whole.with_context(|| format!("--reach {}: give a folder that is there", folder.display()))
    };
    let run_dir = needs.run_dir.and_then(|folder| folder.canonicalize().ok());
    args.reach.iter().map(reach).chain(run_dir.map(Ok)).collect()
}

/// Why a file of the API's cannot be used, if it is the sandbox that keeps it from us.
pub(crate) fn out_of_reach(path: &Path, error: &io::Error) -> Option<String> {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return None;
    }
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    let inside = |reach: &PathBuf| folder.as_ref().is_some_and(|folder| folder.starts_with(reach));
    if REACH.get()?.iter().any(inside) {
        return None;
    }
    Some(format!(
        "{} is out of this VM's reach: start its process with --reach and a folder above it, or with --no-sandbox",
        path.display()
    ))
}

/// Why the tap called `tap` cannot be opened now, if it is the sandbox that keeps it from us. To be asked first: the calls it
/// takes are forbidden then.
pub(crate) fn taps_out_of_reach(tap: &str) -> Option<String> {
    let forbidden = TAPS.get().is_some_and(|allowed| !allowed) && !tap.starts_with("fd:");
    forbidden.then(|| {
        format!(
            "tap {tap} is out of this VM's reach: start its process with --attach-taps, or with --no-sandbox, or pass it an open \
             tap (fd:N)"
        )
    })
}

/// For a thread that serves the API and links; call it first thing.
pub(crate) fn serve() {
    confine(Kind::Runtime);
}

fn plan(spec: &VmSpec, args: &ProcessArgs, needs: Needs<'_>) -> Plan {
    if let (Some(user), Some(run_dir)) = (args.user, needs.run_dir) {
        // Made by root a moment ago, or the user's own already.
        let _ = std::os::unix::fs::chown(run_dir, Some(user.uid), Some(user.gid));
    }
    let devices = &spec.devices;
    let cgroup = args.cgroup.clone().map(|path| {
        let limit_to_ram = args.cgroup_limits.then_some(spec.ram_bytes);
        Cgroup { path, limit_to_ram }
    });
    Plan {
        files: files(spec, args, needs),
        network: Network {
            // A VM that the API can reach may be told to move to another host.
            peers: needs.run_dir.is_some() || needs.peers || args.api.is_some(),
            host_sockets: devices.vsock.is_some() || !devices.consoles.is_empty(),
        },
        priority: needs.run_dir.is_some(),
        user: args.user,
        cgroup,
        faults: needs.faults,
        taps: needs.taps,
        report: args.sandbox_report,
    }
}

/// What is opened by path once the sandbox is entered. A reset reads the kernel again.
fn files(spec: &VmSpec, args: &ProcessArgs, needs: Needs<'_>) -> Files {
    let mut files = Files::default();
    // In a static program the random numbers of `rand` come from there.
    ["/dev/urandom", "/dev/random"].iter().for_each(|device| files.read(Path::new(device)));
    match &spec.boot {
        BootSpec::Kernel { kernel, initrd } => {
            files.read(kernel);
            initrd.iter().for_each(|initrd| files.read(initrd));
        }
        BootSpec::Firmware(firmware) => files.read(firmware),
        BootSpec::Disk { .. } => {}
    }
    for disk in &spec.devices.disks {
        if disk.readonly {
            files.read(&disk.path);
        } else {
            files.read_write(&disk.path);
            let journal = journal_of(&disk.path);
            if needs.journals {
                make_file(&journal, args);
            }
            // One that was left behind is made good before the disk is used.
            if journal.exists() {
                files.read_write(&journal);
            }
        };
        if let (DiskFormat::Qcow2, Some(folder)) = (disk.format, disk.path.parent()) {
            // It may be based on other images of its folder.
            files.read(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        }
    }
    if let (SerialSpec::File(log), None) = (&spec.serial, needs.run_dir) {
        make_file(log, args);
        files.read_write(log);
    }
    needs.run_dir.iter().for_each(|folder| files.keep(folder));
    if needs.taps {
        files.device(Path::new("/dev/net/tun"));
    }
    needs.snapshot.iter().for_each(|file| files.read(file));
    args.reach.iter().for_each(|folder| files.reach(folder));
    args.api.iter().for_each(|socket| files.socket(socket));
    spec.devices.vsock.iter().for_each(|vsock| files.socket(&vsock.socket));
    spec.devices.consoles.iter().for_each(|console| files.socket(&console.socket));
    files
}

/// Makes a file now, so that there is one to allow; if that fails, whoever opens it says so.
fn make_file(path: &Path, args: &ProcessArgs) {
    let made = std::fs::File::options().create_new(true).append(true).open(path);
    if let (Ok(_), Some(user)) = (made, args.user) {
        let _ = std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid));
    }
}

/// What this host offers for confining VMs.
pub(crate) fn checks() -> [Check; 2] {
    let landlock = match endophyte_sandbox::landlock_abi() {
        Some(abi) => (Verdict::Ok, format!("version {abi}"), ""),
        None => (
            Verdict::Warn,
            "not offered: a VM's process could open any file its user can".to_owned(),
            "use Linux 5.13 or newer with landlock among its security modules (lsm=), or --user",
        ),
    };
    let seccomp = if endophyte_sandbox::seccomp_available() {
        (Verdict::Ok, "filters for each kind of thread".to_owned(), "")
    } else {
        (
            Verdict::Warn,
            "not offered: VMs run with --no-sandbox only".to_owned(),
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    };
    [("Landlock", landlock), ("seccomp", seccomp)].map(|(name, (verdict, found, remedy))| Check {
        name,
        verdict,
        found,
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use endophyte_vmm::spec::{CpuModel, DeviceSpecs, HugePages, Policies};

    use super::*;

    #[test]
    fn a_protected_vm_has_peers_and_one_alone_has_not() {
        let spec = VmSpec {
            name: "a".to_owned(),
            vcpus: 1,
            cpu: CpuModel::Host,
            huge_pages: HugePages::None,
            ram_bytes: 64 << 20,
            boot: BootSpec::Firmware("/boot/firmware".into()),
            cmdline: String::new(),
            net: Vec::new(),
            devices: DeviceSpecs::default(),
            serial: SerialSpec::Null,
            policies: Policies::default(),
        };
        let args = ProcessArgs::default();
        let alone = plan(&spec, &args, Needs::default());
        assert!(!alone.network.peers && !alone.priority && !alone.network.host_sockets && !alone.faults);
        let reached = ProcessArgs { api: Some("/run/a.sock".into()), ..ProcessArgs::default() };
        assert!(plan(&spec, &reached, Needs::default()).network.peers);
        let needs = Needs { run_dir: Some(Path::new("/run/a")), ..Needs::default() };
        let protected = plan(&spec, &args, needs);
        assert!(protected.network.peers && protected.priority && !protected.report);
    }
}
