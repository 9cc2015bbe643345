//! The active role: run the guest, keep its replicas.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, anyhow};
use endophyte_vmm::spec::Policies;
use endophyte_vmm::spec::Policy;
use mycelium_arbiter::client::Client;
use mycelium_ram::active::{self, ActiveParts, Ended, Inbox};
use mycelium_ram::events::{Event, EventLog};
use mycelium_ram_core::mode::Mode;
use mycelium_ram_core::primary::StopReason;
use mycelium_ram_core::record::{Change, LossPolicy, Record, Refusal, Swap};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{EpochId, Member, OpId, VmId};

use crate::cli::ActiveArgs;
use crate::console::{StdoutCopy, type_stdin};
use crate::desk::{Hands, Protection};
use crate::exit::{Exit, Failure, OrExit};
use crate::guest::Guest;
use crate::node::{Node, primary_config};
use crate::replicas::Keeper;
use crate::session::Offering;
use crate::signals::Signals;

/// Boots a VM and protects it until it ends.
pub(crate) fn run(args: &ActiveArgs) -> Result<ExitCode, Exit> {
    let (node, signals) = Node::open(&args.node, "active")?;
    node.replicas.set(&args.replica).or_exit(Failure::Spec)?;
    let guest = node.build_guest()?;
    let me = node.incarnate("active");
    let record = node.runtime.block_on(create_record(&node.arbiter()?, &node.vm, me, args.on_loss))?;
    guest.machine.boot().or_exit(Failure::Host)?;
    guest.machine.set_rx_enabled(true);
    guest.machine.resume().or_exit(Failure::Host)?;
    let mode = Some(args.mode).filter(|mode| *mode != record.mode);
    protect(&node, guest, Mandate { me, record, resumed_from: EpochId(0), ops: 1, mode }, &signals)
}

/// Makes the record that says this process is the active.
async fn create_record(arbiter: &Client, vm: &VmId, me: Member, policy: LossPolicy) -> Result<Record, Exit> {
    let op = OpId { incarnation: me.incarnation, count: 1 };
    let create =
        Swap { vm: vm.clone(), expected_version: 0, proposer: me, op, change: Change::Create { policy } };
    match arbiter.ask(Request::Swap(create)).await.or_exit(Failure::Peer)? {
        Reply::Applied { record, .. } => Ok(record),
        Reply::Refused { refusal: Refusal::Exists, record: Some(record), .. } => Err(anyhow!(
            "the arbiter's record says that VM {vm} runs as generation {} on node {}; \
             if it runs nowhere any more, say so with: mycelium vm rm {vm} (without node daemons: mycelium arbiter forget {vm})",
            record.generation.0,
            record.active.node
        ))
        .or_exit(Failure::Peer),
        other => {
            Err(anyhow!("the arbiter did not make a record of VM {vm}: {other:?}")).or_exit(Failure::Peer)
        }
    }
}

/// By what right this process runs the guest.
#[derive(Debug)]
pub(crate) struct Mandate {
    pub(crate) me: Member,
    pub(crate) record: Record,
    pub(crate) resumed_from: EpochId,
    pub(crate) ops: u64,
    /// What the record is to say of its mode, if it does not yet.
    pub(crate) mode: Option<Mode>,
}

/// Protects a running guest until it ends, here or by somebody else's takeover.
pub(crate) fn protect(
    node: &Node,
    guest: Guest,
    mandate: Mandate,
    signals: &Signals,
) -> Result<ExitCode, Exit> {
    let (to_inbox, inbox) = channel();
    guest.door.ring_at(to_inbox.clone());
    guest.gate_events().or_exit(Failure::Host)?;
    let offer = node.offer(mandate.me, mandate.record.generation, &guest)?;
    node.replicas.keep(Keeper {
        offering: Offering {
            identity: node.identity.clone(),
            options: node.link_options(),
            offer,
            events: node.events.clone(),
        },
        inbox: to_inbox.clone(),
        runtime: node.runtime.handle().clone(),
    });
    let parts = ActiveParts {
        cfg: primary_config(node.args.timing),
        me: mandate.me,
        record: mandate.record,
        resumed_from: mandate.resumed_from,
        ops: mandate.ops,
        machine: guest.port(),
        gate: guest.door.gate.clone(),
        ingress: guest.ingress.clone(),
        disks: guest.disks.clone(),
        shadow_pages: node.args.shadow_pages(),
        arbiter: node.arbiter_port(to_inbox.clone(), Inbox::Arbiter)?,
        events: node.events.clone(),
    };
    mandate.mode.into_iter().for_each(|mode| drop(to_inbox.send(Inbox::SetMode(mode))));
    let shutdown = to_inbox.clone();
    signals.on_signal(move || drop(shutdown.send(Inbox::Shutdown))).or_exit(Failure::Host)?;
    let terminal = open_console(node, &guest, &to_inbox).or_exit(Failure::Host)?;
    let Guest { machine, announcer, notices, .. } = guest;
    let verdict = watch_guest(notices, machine.spec().policies, to_inbox.clone(), node.events.clone());
    let verdict = verdict.context("cannot start a thread").or_exit(Failure::Host)?;
    let (ended, _machine) = active::run(parts, &inbox, &to_inbox).or_exit(Failure::Host)?;
    announcer.stop();
    drop(terminal);
    match ended {
        Ended::Stopped(reason @ StopReason::HandedOver { .. }) => {
            node.say(&format!("{}: {reason}", node.vm));
            Ok(ExitCode::SUCCESS)
        }
        Ended::Stopped(reason) => {
            Err(anyhow!("the guest was stopped here: {reason}")).or_exit(Failure::Deposed)
        }
        Ended::Shutdown => match verdict.try_recv() {
            Ok(what) => {
                Err(anyhow!("guest {what}; the VM was stopped by its policy")).or_exit(Failure::Guest)
            }
            Err(_) => Ok(ExitCode::SUCCESS),
        },
    }
}

/// Opens the guest to the API, and its console to the terminal if the spec asks for one.
fn open_console(node: &Node, guest: &Guest, inbox: &Sender<Inbox>) -> std::io::Result<Option<StdoutCopy>> {
    let (to_hold, to_hand_over) = (inbox.clone(), inbox.clone());
    let (to_pace, to_mode) = (inbox.clone(), inbox.clone());
    let hold = move |hold| drop(to_hold.send(if hold { Inbox::PauseGuest } else { Inbox::ResumeGuest }));
    let hand_over = move |to, tell| drop(to_hand_over.send(Inbox::HandOver(to, tell)));
    node.desk.take(Hands {
        machine: Arc::downgrade(&guest.machine),
        hold: Box::new(hold),
        order: None,
        protection: Some(Protection {
            hand_over: Box::new(hand_over),
            set_pace: Box::new(move |pace| drop(to_pace.send(Inbox::SetPace(pace)))),
            set_mode: Box::new(move |mode| drop(to_mode.send(Inbox::SetMode(mode)))),
        }),
    });
    if !node.has_terminal() {
        return Ok(None);
    }
    type_stdin(Arc::downgrade(&guest.machine));
    StdoutCopy::start(node.desk.tape.clone(), node.runtime.handle().clone()).map(Some)
}

/// Acts on what the guest did to itself, once that is committed. The receiver holds why the VM was stopped, if it was
/// the guest's failure.
fn watch_guest(
    notices: std::sync::mpsc::Receiver<String>,
    policies: Policies,
    inbox: Sender<Inbox>,
    events: EventLog,
) -> std::io::Result<std::sync::mpsc::Receiver<String>> {
    let (tell, verdict) = channel();
    let watch = move || {
        for what in notices {
            events.note(Event::Guest { what: what.clone() });
            let (policy, failure) = match what.as_str() {
                "power-off" => (Policy::Stop, false),
                "reset" => (Policy::Reset, false),
                "panic" => (policies.on_panic, true),
                "triple-fault" => (policies.on_triple_fault, true),
                "watchdog" => (policies.on_watchdog, true),
                _ => (Policy::Stop, true),
            };
            tracing::warn!(%what, ?policy, "acting on the VM's policy");
            let order = match policy {
                Policy::Stop => Inbox::Shutdown,
                Policy::Reset => Inbox::ResetGuest,
                Policy::Pause => Inbox::PauseGuest,
            };
            if failure && policy == Policy::Stop {
                let _ = tell.send(what);
            }
            if inbox.send(order).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(watch)?;
    Ok(verdict)
}
