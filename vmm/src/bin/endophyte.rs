//! `endophyte`: runs one VM in this process.
//!
//! Exit codes: 0 the guest switched itself off, or a signal ended it; 1 something unexpected; 2 wrong usage;
//! 3 the VM spec is wrong; 4 this host cannot run it; 5 the guest failed.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use endophyte_vmm::doctor;
use endophyte_vmm::machine::{Machine, MachineEvent, MachinePorts};
use endophyte_vmm::spec::{Policy, SerialSpec, VmSpec};

const EXIT_SPEC: u8 = 3;
const EXIT_HOST: u8 = 4;
const EXIT_GUEST: u8 = 5;

/// A virtual machine monitor whose VMs survive the loss of their host.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a VM without protection.
    Run {
        /// VM spec file (TOML).
        #[arg(long)]
        spec: PathBuf,
    },
    /// Explains what this host offers a VM.
    Doctor {
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// What ends or interrupts the run of a VM.
enum Happening {
    Signal,
    Event(MachineEvent),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(log_filter()).init();
    match Cli::parse().command {
        Command::Run { spec } => run(&spec),
        Command::Doctor { json } => report_host(json),
    }
}

fn log_filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into())
}

fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("endophyte: {error:#}");
    ExitCode::from(code)
}

fn report_host(json: bool) -> ExitCode {
    let report = doctor::examine();
    if json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    if report.can_run_vms() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_HOST) }
}

fn run(spec: &Path) -> ExitCode {
    let spec = match VmSpec::load(spec) {
        Ok(spec) => spec,
        Err(error) => return fail(EXIT_SPEC, &error.into()),
    };
    // Before any thread exists, so that all inherit it and the signal comes to whoever waits for it.
    let signals = match block_signals() {
        Ok(signals) => signals,
        Err(error) => return fail(1, &error),
    };
    match start(&spec) {
        Ok(machine) => supervise(&machine, signals),
        Err(error) => fail(EXIT_HOST, &error),
    }
}

fn start(spec: &VmSpec) -> Result<Arc<Machine>> {
    let ports = MachinePorts::plain(spec)?;
    let machine = Arc::new(Machine::build(spec, ports)?);
    machine.boot()?;
    machine.set_rx_enabled(true);
    machine.resume()?;
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
fn supervise(machine: &Machine, signals: libc::sigset_t) -> ExitCode {
    let policies = machine.spec().policies;
    for happening in happenings(machine, signals) {
        let (what, policy) = match happening {
            Happening::Signal | Happening::Event(MachineEvent::GuestShutdown) => return ExitCode::SUCCESS,
            Happening::Event(MachineEvent::GuestReset) => ("guest reset", Policy::Reset),
            Happening::Event(MachineEvent::GuestPanic { .. }) => ("guest panic", policies.on_panic),
            Happening::Event(MachineEvent::TripleFault { .. }) => ("triple fault", policies.on_triple_fault),
            Happening::Event(MachineEvent::WatchdogExpired) => ("watchdog expired", policies.on_watchdog),
            Happening::Event(MachineEvent::VcpuError { vcpu, reason }) => {
                return fail(EXIT_GUEST, &anyhow::anyhow!("vCPU {vcpu} cannot go on: {reason}"));
            }
        };
        tracing::warn!(what, ?policy, "acting on the VM's policy");
        match act(machine, policy) {
            Ok(true) => {}
            Ok(false) => {
                return fail(EXIT_GUEST, &anyhow::anyhow!("{what}; the VM was stopped by its policy"));
            }
            Err(error) => return fail(1, &error.context(format!("after {what}"))),
        }
    }
    ExitCode::SUCCESS
}

/// Carries out a policy; false if the VM is to end.
fn act(machine: &Machine, policy: Policy) -> Result<bool> {
    if policy == Policy::Stop {
        return Ok(false);
    }
    machine.pause()?;
    if policy == Policy::Reset {
        machine.reset()?;
        machine.resume()?;
    }
    Ok(true)
}

/// Signals and machine events as one stream.
fn happenings(machine: &Machine, signals: libc::sigset_t) -> mpsc::Receiver<Happening> {
    let (signal_sender, receiver) = mpsc::channel();
    let event_sender = signal_sender.clone();
    std::thread::spawn(move || {
        let mut number = 0;
        // SAFETY: both pointers are to live locals; the set was filled by `block_signals`.
        while unsafe { libc::sigwait(&raw const signals, &raw mut number) } == 0 {
            if signal_sender.send(Happening::Signal).is_err() {
                return;
            }
        }
    });
    let events = machine.events().clone();
    std::thread::spawn(move || {
        loop {
            if let Some(event) = events.recv_timeout(Duration::from_secs(3600))
                && event_sender.send(Happening::Event(event)).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn block_signals() -> Result<libc::sigset_t> {
    // SAFETY: a zeroed set is a valid object for sigemptyset to fill; the pointers are to a live local.
    let (set, result) = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        (set, libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))
    };
    anyhow::ensure!(result == 0, "cannot block signals: {}", std::io::Error::from_raw_os_error(result));
    Ok(set)
}
