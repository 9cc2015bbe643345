//! A VM without protection: taps and console straight through.

use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, anyhow};
use endophyte_vmm::machine::{Machine, MachineEvent, MachinePorts};
use endophyte_vmm::spec::{Policy, SerialSpec, VmSpec};

use crate::cli::RunArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::Signals;

/// What ends or interrupts the run of a VM.
enum Happening {
    Signal,
    Event(MachineEvent),
}

pub(crate) fn run(args: &RunArgs, signals: &Signals) -> Result<ExitCode, Exit> {
    let spec = VmSpec::load(&args.spec).or_exit(Failure::Spec)?;
    let machine = start(&spec)?;
    supervise(&machine, &happenings(&machine, signals)?)
}

fn start(spec: &VmSpec) -> Result<Arc<Machine>, Exit> {
    let ports = MachinePorts::plain(spec).or_exit(Failure::Host)?;
    let machine = Arc::new(Machine::build(spec, ports).or_exit(Failure::Host)?);
    machine.boot().or_exit(Failure::Host)?;
    machine.set_rx_enabled(true);
    machine.resume().or_exit(Failure::Host)?;
    if spec.serial == SerialSpec::Stdio {
        let console = Arc::downgrade(&machine);
        std::thread::spawn(move || {
            let mut chunk = [0; 256];
            while let Ok(n @ 1..) = std::io::stdin().read(&mut chunk) {
                let Some(machine) = console.upgrade() else { return };
                machine.serial_input(&chunk[..n]);
            }
        });
    }
    Ok(machine)
}

/// Acts on what happens until the VM has ended.
fn supervise(machine: &Machine, happenings: &Receiver<Happening>) -> Result<ExitCode, Exit> {
    let policies = machine.spec().policies;
    for happening in happenings {
        let (what, policy) = match happening {
            Happening::Signal | Happening::Event(MachineEvent::GuestShutdown) => {
                return Ok(ExitCode::SUCCESS);
            }
            Happening::Event(MachineEvent::GuestReset) => ("guest reset", Policy::Reset),
            Happening::Event(MachineEvent::GuestPanic { .. }) => ("guest panic", policies.on_panic),
            Happening::Event(MachineEvent::TripleFault { .. }) => ("triple fault", policies.on_triple_fault),
            Happening::Event(MachineEvent::WatchdogExpired) => ("watchdog expired", policies.on_watchdog),
            Happening::Event(MachineEvent::VcpuError { vcpu, reason }) => {
                return Err(anyhow!("vCPU {vcpu} cannot go on: {reason}")).or_exit(Failure::Guest);
            }
        };
        tracing::warn!(what, ?policy, "acting on the VM's policy");
        if policy == Policy::Stop {
            return Err(anyhow!("{what}; the VM was stopped by its policy")).or_exit(Failure::Guest);
        }
        carry_out(machine, policy).with_context(|| format!("after {what}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn carry_out(machine: &Machine, policy: Policy) -> anyhow::Result<()> {
    machine.pause()?;
    if policy == Policy::Reset {
        machine.reset()?;
        machine.resume()?;
    }
    Ok(())
}

/// Signals and machine events as one stream.
fn happenings(machine: &Machine, signals: &Signals) -> Result<Receiver<Happening>, Exit> {
    let (on_signal, receiver) = channel();
    let on_event = on_signal.clone();
    signals.on_signal(move || drop(on_signal.send(Happening::Signal)))?;
    let events = machine.events().clone();
    std::thread::spawn(move || {
        loop {
            if let Some(event) = events.recv_timeout(Duration::from_secs(3600))
                && on_event.send(Happening::Event(event)).is_err()
            {
                return;
            }
        }
    });
    Ok(receiver)
}
