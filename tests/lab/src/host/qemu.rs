//! The emulator's command line.

use std::path::Path;
use std::process::Command;

use lab_agent::plan::CONTROL_PORT;

use super::config::{HostConfig, NicBackend};
use super::tsc;
use crate::{LabError, requirements};

/// AMD-V with nested paging in software; what Debian's kernel needs to load kvm_amd. Without the last flag the emulator
/// warns about a capability that software emulation lacks.
const CPU: &str = "EPYC,+svm,+npt,-arch-capabilities";

/// A panic ends the machine at once. The second line is for speed, about a second of a boot of five: no mitigations for a
/// CPU that is emulated anyway, no self-tests, no security modules, no long RCU waits, and randomness from the CPU so
/// that nothing waits for entropy.
const KERNEL_ARGS: &str = "console=ttyS0 rdinit=/init panic=-1 quiet \
    mitigations=off no_timer_check tsc=reliable nowatchdog audit=0 lsm= cryptomgr.notests rcupdate.rcu_expedited=1 \
    8250.nr_uarts=1 random.trust_cpu=on";

/// The command that runs a host. Its standard input is the control channel; its standard output is the host's console.
pub(crate) fn command(config: &HostConfig, vmlinux: &Path, initramfs: &Path) -> Result<Command, LabError> {
    requirements::check()?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-name", &config.name, "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", CPU]);
    command.args(["-m", &config.memory_mib.to_string(), "-smp", &config.vcpus.to_string()]);
    command.args(["-display", "none", "-monitor", "none"]);
    command.args(["-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console"]);
    command.args(["-chardev", "socket,id=control,fd=0", "-device", "virtio-serial-pci,max_ports=2"]);
    command.args(["-device", &format!("virtserialport,chardev=control,name={CONTROL_PORT}")]);
    command.args(network_args(config));
    command.arg("-kernel").arg(vmlinux).arg("-initrd").arg(initramfs);
    command.args(["-append", &kernel_command_line(config)]);
    command.args(&config.emulator_args);
    Ok(command)
}

fn network_args(config: &HostConfig) -> Vec<String> {
    let nic = |(index, nic): (usize, &super::Nic)| {
        let backend = match &nic.backend {
            NicBackend::Tap { device } => {
                format!("tap,id=net{index},ifname={device},script=no,downscript=no")
            }
            NicBackend::Datagrams { local, remote } => format!(
                "dgram,id=net{index},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                local.display(),
                remote.display()
            ),
        };
        // Without a boot ROM the firmware has nothing to try before the kernel.
        let device = format!("virtio-net-pci,netdev=net{index},mac={},romfile=", nic.mac);
        ["-netdev".to_owned(), backend, "-device".to_owned(), device]
    };
    config.nics.iter().enumerate().flat_map(nic).collect()
}

/// A kernel measures its time stamp counter against a timer while it starts. In an emulator on a busy machine it gets that
/// wrong, once by a factor of three, and then all its clocks are wrong: it is told instead.
fn kernel_command_line(config: &HostConfig) -> String {
    let counter = format!("tsc_early_khz={}", tsc::khz());
    [KERNEL_ARGS, &counter]
        .into_iter()
        .chain(config.kernel_args.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_started_on_a_busy_machine_knows_its_counter() {
        let config = HostConfig::new("h0", Path::new("/run"));
        let line = kernel_command_line(&config);
        let told = line.split(' ').find_map(|word| word.strip_prefix("tsc_early_khz="));
        let told: u32 = told.expect("the counter's frequency").parse().unwrap();
        assert!((100_000..10_000_000).contains(&told), "{told} kHz");
    }
}
