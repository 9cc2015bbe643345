//! A VM without protection: taps and console straight through.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, anyhow};
use endophyte_snapshot::lazy::Userfault;
use endophyte_vmm::machine::{Machine, MachineEvent, MachinePorts, keep_kvm_open};
use endophyte_vmm::spec::{Policy, SerialSpec, VmSpec};
use rhizomorph_link::Identity;
use tokio::sync::watch;

use crate::announce::Announcer;
use crate::api::Api;
use crate::cli::RunArgs;
use crate::confine::{self, Needs, Opened};
use crate::console::{Tape, Taped, type_stdin};
use crate::create::{CREATED, Orders, WAITING, Waiting};
use crate::desk::{Allowed, Desk, Hands, Order, Peering};
use crate::exit::{Exit, Failure, OrExit};
use crate::migrate::{Host, Incoming, Keeper};
use crate::outlet::say;
use crate::plug::Plugs;
use crate::replicas::Replicas;
use crate::rundir::{RunDir, Status};
use crate::signals::Signals;
use crate::snapshot;

/// What ends or interrupts the run of a VM.
#[derive(Debug)]
pub(crate) enum Happening {
    Signal,
    Event(MachineEvent),
    /// The operator wants the guest to stand, or to go on.
    Hold(bool),
    Order(Order),
    /// The thread that copies memory for a migration has ended.
    Copied,
}

/// What a process has before it is known which machine it runs.
struct Readied {
    identity: Identity,
    allowed: Allowed,
    desk: Arc<Desk>,
    signals: Signals,
}

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Exit> {
    match &args.spec {
        Some(file) => run_spec(args, VmSpec::load(file).or_exit(Failure::Spec)?),
        None => run_asked(args),
    }
}

fn run_spec(args: &RunArgs, mut spec: VmSpec) -> Result<ExitCode, Exit> {
    silence(args, &mut spec);
    let readied = ready(args, Some(&spec), None)?;
    let opened = confine::enter(&spec, &args.process, needs(args))?;
    readied.signals.take()?;
    let api = args.process.api.as_deref();
    let _api =
        api.map(|path| Api::on_thread(path, readied.desk.clone())).transpose().or_exit(Failure::Host)?;
    live(args, &spec, opened, readied, |_| ())
}

/// Waits for the API to say which machine.
fn run_asked(args: &RunArgs) -> Result<ExitCode, Exit> {
    let (waiting, orders) = Waiting::new()?;
    let readied = ready(args, None, Some(orders))?;
    tell(&readied.desk, WAITING, "");
    let socket = args.process.api.clone().unwrap_or_default();
    let Some((asked, _api, runtime)) = waiting.serve(&socket, &readied.desk, &readied.signals)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut spec = asked.spec.clone();
    silence(args, &mut spec);
    readied.desk.is_for(&spec);
    readied.desk.board.send_modify(|s| s.vm.clone_from(&spec.name));
    let opened = confine::enter(&spec, &args.process, needs(args));
    // A failure is told by the thread that would have gone on serving: there is nothing to confine.
    let opened = opened.and_then(|opened| readied.signals.take().or_exit(Failure::Host).map(|()| opened));
    Api::go_on(runtime).or_exit(Failure::Host)?;
    match opened {
        Ok(opened) => live(args, &spec, opened, readied, |made| asked.answer(made)),
        Err(exit) => {
            asked.answer(Err(&exit));
            Err(exit)
        }
    }
}

/// The run folder has the log.
fn silence(args: &RunArgs, spec: &mut VmSpec) {
    if args.run_dir.is_some() && spec.serial == SerialSpec::Unsaid {
        spec.serial = SerialSpec::Null;
    }
}

/// Before the sandbox and before any thread.
fn ready(args: &RunArgs, spec: Option<&VmSpec>, orders: Option<Orders>) -> Result<Readied, Exit> {
    // First of all: a host without KVM is to be told so, and not that it lacks something else.
    keep_kvm_open().or_exit(Failure::Host)?;
    let key = args.key.as_deref().map(Identity::load).transpose().or_exit(Failure::Spec)?;
    let tape = tape(args.run_dir.as_deref()).or_exit(Failure::Host)?;
    // The key this process is known by where its VM is to be migrated to.
    let identity = key.map_or_else(Identity::generate, Ok).or_exit(Failure::Host)?;
    let signals = Signals::unblocked();
    let board = watch::Sender::new(Status {
        vm: spec.map(|spec| spec.name.clone()).unwrap_or_default(),
        role: "run".to_owned(),
        state: "starting".to_owned(),
        node: identity.peer_key().to_string(),
        ..Status::default()
    });
    let peering = Peering { replicas: Replicas::new(board.clone()), allowed: Allowed::default() };
    let allowed = peering.allowed.clone();
    let desk = Desk::new(spec, orders, board, tape, signals.stopper(), Some(peering));
    Ok(Readied { identity, allowed, desk, signals })
}

/// Makes the machine and keeps it until it has ended; `made` hears whether there is one.
fn live(
    args: &RunArgs,
    spec: &VmSpec,
    opened: Opened,
    Readied { identity, allowed, desk, signals }: Readied,
    made: impl FnOnce(Result<(), &Exit>),
) -> Result<ExitCode, Exit> {
    let incoming = Incoming::open(args, &identity, &allowed, &desk)?;
    let machine = match start(spec, opened, &desk, args, incoming, &signals) {
        Ok(Some(machine)) => machine,
        Ok(None) => return Ok(ExitCode::SUCCESS),
        Err(exit) => {
            made(Err(&exit));
            return Err(exit);
        }
    };
    let (happenings, sender) = happenings(&machine, &signals, &desk)?;
    // A guest that arrived held has begun elsewhere.
    if machine.is_paused() && args.incoming.is_empty() {
        desk.board.send_modify(|s| s.held = true);
        tell(&desk, CREATED, "");
    } else {
        tell(&desk, "running", "");
    }
    made(Ok(()));
    let ended = supervise(&machine, &happenings, &desk, Keeper::new(&machine, &desk, identity, sender));
    tell(
        &desk,
        "stopped",
        &ended.as_ref().map_or_else(|exit| format!("{:#}", exit.error), |_| String::new()),
    );
    ended
}

/// What a sandbox has to leave it.
fn needs(args: &RunArgs) -> Needs<'_> {
    let lazily = args.restore.is_some() && !args.whole;
    let incoming = !args.incoming.is_empty();
    Needs {
        snapshot: args.restore.as_deref(),
        faults: lazily || incoming,
        peers: incoming,
        taps: args.attach_taps,
        ..Needs::default()
    }
}

/// Where the console is kept for those who read it later.
fn tape(run_dir: Option<&Path>) -> anyhow::Result<Arc<Tape>> {
    let Some(folder) = run_dir else { return Ok(Tape::in_memory()) };
    Ok(Tape::on_log(RunDir::open(folder)?.serial_log()?))
}

/// Builds the machine and lets the guest run; `None` if a signal came before there was one.
fn start(
    spec: &VmSpec,
    opened: Opened,
    desk: &Arc<Desk>,
    args: &RunArgs,
    incoming: Option<Incoming>,
    signals: &Signals,
) -> Result<Option<Arc<Machine>>, Exit> {
    let taps = opened.taps.again();
    let mut ports = MachinePorts::on_taps(spec, taps).or_exit(Failure::Host)?;
    if args.process.api.is_some() || args.run_dir.is_some() {
        ports.serial = Arc::new(Taped { port: ports.serial, tape: desk.tape.clone() });
    }
    let machine = match incoming {
        Some(incoming) => arrive(spec, ports, desk, incoming.serving(opened.userfault), signals)?,
        None => Some(boot(spec, ports, args, opened.userfault)?),
    };
    if let (Some(machine), SerialSpec::Unsaid | SerialSpec::Stdio) = (&machine, &spec.serial) {
        type_stdin(Arc::downgrade(machine));
    }
    Ok(machine)
}

fn boot(
    spec: &VmSpec,
    ports: MachinePorts,
    args: &RunArgs,
    userfault: Option<Userfault>,
) -> Result<Arc<Machine>, Exit> {
    let machine = Arc::new(Machine::build(spec, ports).or_exit(Failure::Host)?);
    match &args.restore {
        Some(file) => snapshot::restore(&machine, file, userfault)?,
        None => machine.boot().or_exit(Failure::Host)?,
    }
    machine.set_rx_enabled(true);
    if args.wait || args.hold {
        return Ok(machine);
    }
    machine.resume().or_exit(Failure::Host)?;
    if args.restore.is_some() {
        machine.fetch_ahead().or_exit(Failure::Host)?;
        machine.announce();
    }
    Ok(machine)
}

/// Waits for a guest that is migrated here.
fn arrive(
    spec: &VmSpec,
    ports: MachinePorts,
    desk: &Arc<Desk>,
    incoming: Incoming,
    signals: &Signals,
) -> Result<Option<Arc<Machine>>, Exit> {
    let cards = spec.net.iter().map(|card| card.mac.0).zip(ports.net.iter().map(|port| port.tap.clone()));
    let announcer = Announcer::new(cards.collect());
    let machine = Arc::new(Machine::build_incoming(spec, ports).or_exit(Failure::Host)?);
    let host = Host { machine: machine.clone(), desk: desk.clone(), announcer };
    if let (Some(ticket), false) = (desk.reach(), spec.serial == SerialSpec::Stdio) {
        say(&ticket.to_string());
    }
    Ok(incoming.receive(&host, signals)?.then_some(machine))
}

fn tell(desk: &Desk, state: &str, reason: &str) {
    desk.board.send_modify(|s| (s.state, s.reason) = (state.to_owned(), reason.to_owned()));
}

/// Acts on what happens until the VM has ended.
fn supervise(
    machine: &Arc<Machine>,
    happenings: &Receiver<Happening>,
    desk: &Arc<Desk>,
    mut keeper: Keeper,
) -> Result<ExitCode, Exit> {
    let policies = machine.spec().policies;
    let mut plugs = Plugs::new(machine, desk);
    while let Some(happening) = keeper.next(happenings) {
        let (what, policy) = match happening {
            Happening::Signal | Happening::Event(MachineEvent::GuestShutdown) => {
                return Ok(ExitCode::SUCCESS);
            }
            Happening::Hold(hold) => {
                set_held(machine, desk, hold)?;
                continue;
            }
            Happening::Order(Order::Snapshot { path, stop, tell }) => {
                let held = desk.board.borrow().held;
                if snapshot::save(machine, &path, held || stop, &tell)? && stop {
                    return Ok(ExitCode::SUCCESS);
                }
                if stop && !held {
                    machine.resume().or_exit(Failure::Host)?;
                }
                continue;
            }
            Happening::Order(Order::Plug(plug)) => {
                plugs.carry_out(plug);
                continue;
            }
            Happening::Event(MachineEvent::Ejected { .. }) => {
                plugs.ejected();
                continue;
            }
            // The keeper's.
            Happening::Order(Order::Migrate(_)) | Happening::Copied => continue,
            Happening::Event(MachineEvent::GuestReset) => ("guest reset", Policy::Reset),
            Happening::Event(MachineEvent::GuestPanic { .. }) => ("guest panic", policies.on_panic),
            Happening::Event(MachineEvent::TripleFault { .. }) => ("triple fault", policies.on_triple_fault),
            Happening::Event(MachineEvent::WatchdogExpired) => ("watchdog expired", policies.on_watchdog),
            Happening::Event(MachineEvent::MemoryLost { reason }) => {
                return Err(anyhow!("the guest's memory cannot be completed: {reason}"))
                    .or_exit(Failure::Guest);
            }
            Happening::Event(MachineEvent::VcpuError { vcpu, reason }) => {
                return Err(anyhow!("vCPU {vcpu} cannot go on: {reason}")).or_exit(Failure::Guest);
            }
        };
        tracing::warn!(what, ?policy, "acting on the VM's policy");
        if policy == Policy::Stop {
            return Err(anyhow!("{what}; the VM was stopped by its policy")).or_exit(Failure::Guest);
        }
        carry_out(machine, desk, policy).with_context(|| format!("after {what}"))?;
    }
    keeper.verdict()
}

fn carry_out(machine: &Machine, desk: &Desk, policy: Policy) -> anyhow::Result<()> {
    let held = desk.board.borrow().held;
    machine.pause()?;
    if policy == Policy::Pause {
        return set_held(machine, desk, true);
    }
    machine.reset()?;
    // A guest that the operator has stopped boots when he lets it.
    if held { Ok(()) } else { Ok(machine.resume()?) }
}

fn set_held(machine: &Machine, desk: &Desk, hold: bool) -> anyhow::Result<()> {
    if hold {
        machine.pause()?;
    } else {
        machine.resume()?;
    }
    let begins = !hold && desk.board.borrow().state == CREATED;
    if begins && machine.restore_progress().is_some() {
        // Held where a snapshot was taken.
        machine.fetch_ahead()?;
        machine.announce();
    }
    desk.board.send_modify(|s| {
        s.held = hold;
        if begins {
            "running".clone_into(&mut s.state);
        }
    });
    Ok(())
}

/// Signals, machine events and the API's orders as one stream.
fn happenings(
    machine: &Arc<Machine>,
    signals: &Signals,
    desk: &Desk,
) -> Result<(Receiver<Happening>, Sender<Happening>), Exit> {
    let (sender, receiver) = channel();
    let on_signal = sender.clone();
    signals.on_signal(move || drop(on_signal.send(Happening::Signal)))?;
    let on_order = sender.clone();
    let hold = move |hold| drop(on_order.send(Happening::Hold(hold)));
    let to_machine = sender.clone();
    let order = move |order| drop(to_machine.send(Happening::Order(order)));
    let (hold, order) = (Box::new(hold), Some(Box::new(order) as Box<dyn Fn(Order) + Send>));
    desk.take(Hands { machine: Arc::downgrade(machine), hold, order, protection: None });
    pass_events(machine, sender.clone());
    Ok((receiver, sender))
}

fn pass_events(machine: &Machine, to: Sender<Happening>) {
    let events = machine.events().clone();
    std::thread::spawn(move || {
        loop {
            if let Some(event) = events.recv_timeout(Duration::from_secs(3600))
                && to.send(Happening::Event(event)).is_err()
            {
                return;
            }
        }
    });
}
