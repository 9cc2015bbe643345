//! Confining this process to what its VM needs: what must be open before, which files stay within reach, and who is told when
//! threads start.
//!
//! Threads inherit their rights from the one that starts them, so [`enter`] comes before the first: after the spec, the key, the
//! run folder and the host's devices have been opened, before signals, runtimes and the machine. Machines are built afterwards,
//! again and again by a passive: they find `/dev/kvm` and the taps open, and everything else by path.

use std::path::Path;

use endophyte_sandbox::{Cgroup, Files, Kind, Network, Plan, Sandbox, confine};
use endophyte_vmm::devices::net::Tap;
use endophyte_vmm::doctor::{Check, Verdict};
use endophyte_vmm::machine::keep_kvm_open;
use endophyte_vmm::spec::{BootSpec, DiskFormat, SerialSpec, VmSpec};
use endophyte_vmm::threads::{self, ThreadKind};

use crate::cli::ProcessArgs;
use crate::exit::{Exit, Failure, OrExit};

/// The taps of a VM, open for as long as its process.
#[derive(Debug)]
pub(crate) struct Taps(Vec<Tap>);

impl Taps {
    fn open(spec: &VmSpec) -> Result<Self, Exit> {
        let taps = spec.net.iter().map(|card| Tap::open(&card.tap)).collect::<Result<_, _>>();
        taps.map(Self).or_exit(Failure::Host)
    }

    /// One per network card, for one machine.
    pub(crate) fn again(&self) -> std::io::Result<Vec<Tap>> {
        self.0.iter().map(Tap::try_clone).collect()
    }
}

/// Opens the devices of a VM and enters the sandbox. `run_dir` is what a protected VM has besides.
pub(crate) fn enter(spec: &VmSpec, args: &ProcessArgs, run_dir: Option<&Path>) -> Result<Taps, Exit> {
    keep_kvm_open().or_exit(Failure::Host)?;
    let taps = Taps::open(spec)?;
    if args.no_sandbox {
        tracing::warn!(
            "--no-sandbox: a guest that breaks out of its machine can do all that this process' user can"
        );
        return Ok(taps);
    }
    Sandbox::enter(&plan(spec, args, run_dir)).or_exit(Failure::Host)?;
    threads::on_start(|kind| {
        confine(match kind {
            ThreadKind::Vcpu => Kind::Vcpu,
            ThreadKind::Devices => Kind::Devices,
            ThreadKind::Disk => Kind::Disk,
        });
    });
    Ok(taps)
}

/// For a thread that serves the API and links; call it first thing.
pub(crate) fn serve() {
    confine(Kind::Runtime);
}

fn plan(spec: &VmSpec, args: &ProcessArgs, run_dir: Option<&Path>) -> Plan {
    if let (Some(user), Some(run_dir)) = (args.user, run_dir) {
        // Made by root a moment ago, or the user's own already.
        let _ = std::os::unix::fs::chown(run_dir, Some(user.uid), Some(user.gid));
    }
    let devices = &spec.devices;
    let cgroup = args.cgroup.clone().map(|path| {
        let limit_to_ram = args.cgroup_limits.then_some(spec.ram_bytes);
        Cgroup { path, limit_to_ram }
    });
    Plan {
        files: files(spec, args, run_dir),
        network: Network {
            peers: run_dir.is_some(),
            host_sockets: devices.vsock.is_some() || !devices.consoles.is_empty(),
        },
        priority: run_dir.is_some(),
        user: args.user,
        cgroup,
        userfaultfd: false,
        report: args.sandbox_report,
    }
}

/// What is opened by path once the sandbox is entered. A reset reads the kernel again.
fn files(spec: &VmSpec, args: &ProcessArgs, run_dir: Option<&Path>) -> Files {
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
        };
        if let (DiskFormat::Qcow2, Some(folder)) = (disk.format, disk.path.parent()) {
            // It may be based on other images of its folder.
            files.read(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        }
    }
    if let (SerialSpec::File(log), None) = (&spec.serial, run_dir) {
        // Made now, so that there is a file to allow; if that fails, whoever opens it says so.
        let _ = std::fs::File::options().create(true).append(true).open(log);
        files.read_write(log);
    }
    run_dir.iter().for_each(|folder| files.keep(folder));
    args.api.iter().for_each(|socket| files.socket(socket));
    spec.devices.vsock.iter().for_each(|vsock| files.socket(&vsock.socket));
    spec.devices.consoles.iter().for_each(|console| files.socket(&console.socket));
    files
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
    use endophyte_vmm::spec::{DeviceSpecs, Policies};

    use super::*;

    #[test]
    fn a_protected_vm_has_peers_and_one_alone_has_not() {
        let spec = VmSpec {
            name: "a".to_owned(),
            vcpus: 1,
            ram_bytes: 64 << 20,
            boot: BootSpec::Firmware("/boot/firmware".into()),
            cmdline: String::new(),
            net: Vec::new(),
            devices: DeviceSpecs::default(),
            serial: SerialSpec::Null,
            policies: Policies::default(),
        };
        let args = ProcessArgs::default();
        let alone = plan(&spec, &args, None);
        assert!(!alone.network.peers && !alone.priority && !alone.network.host_sockets);
        let protected = plan(&spec, &args, Some(Path::new("/run/a")));
        assert!(protected.network.peers && protected.priority && !protected.report);
    }
}
