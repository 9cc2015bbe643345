//! The passive role: hold a replica, and take over.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::anyhow;
use mycelium_ram::events::Event;
use mycelium_ram::passive::{self, Ended, Inbox, PassiveParts, Promotion};
use mycelium_ram_core::Member;
use mycelium_ram_core::message::{Accept, Message, Offer};
use rhizomorph_link::{IncomingLink, LinkListener, ListenConfig};

use crate::active::{Mandate, protect};
use crate::cli::PassiveArgs;
use crate::exit::{Exit, Failure, OrExit};
use crate::guest::{Guest, MachinePort};
use crate::node::{Node, replica_config};
use crate::session::{answer, first_message, judge};
use crate::signals::Latch;
use crate::wire::{LinkWire, receive};

/// Bytes that staging may need beyond one copy of the guest: what three epochs bring of its disks, and more.
const STAGING_SLACK: usize = 256 << 20;

/// Holds a replica; becomes the active when the active is lost.
pub(crate) fn run(args: &PassiveArgs) -> Result<ExitCode, Exit> {
    let (node, signals) = Node::open(&args.node, "passive")?;
    node.replicas.set(&args.replica).or_exit(Failure::Spec)?;
    node.allowed.set(args.allow.iter().copied());
    let listener = listen(&node, args)?;
    node.desk.listens(node.identity.peer_key(), listener.local_addrs());
    let stop = signals.latch().or_exit(Failure::Host)?;
    loop {
        let guest = node.build_guest()?;
        guest.machine.begin_journals().or_exit(Failure::Host)?;
        touch_memory(&guest);
        let me = node.incarnate("passive");
        node.say(&format!("replica of {} waits for its active on {:?}", node.vm, listener.local_addrs()));
        let patience = Duration::from_secs(args.orphan_after);
        match follow(&node, &listener, &guest, me, &stop, patience)? {
            Ended::Promoted(promotion) => {
                let mandate = take_over(&node, &guest, me, *promotion)?;
                drop(listener);
                return protect(&node, guest, mandate, &signals);
            }
            Ended::Expelled(why) => tracing::warn!(%why, "starting again as a new replica"),
            Ended::Faulty(why) => {
                node.events.note(Event::Trouble { what: why.clone() });
                tracing::error!(%why, "the active's stream makes no sense; starting again as a new replica");
            }
            Ended::Shutdown => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn listen(node: &Node, args: &PassiveArgs) -> Result<LinkListener, Exit> {
    let config = ListenConfig {
        identity: node.identity.clone(),
        allow: node.allowed.list(),
        binds: args.listen.clone(),
        options: node.link_options(),
    };
    let _inside = node.runtime.enter();
    LinkListener::bind(config).or_exit(Failure::Host)
}

/// Has the kernel give the guest's memory now: first touches at takeover would cost up to seconds per GiB.
fn touch_memory(guest: &Guest) {
    use mycelium_ram::ports::PassiveMachine;
    use mycelium_ram_core::page_codec::Change;
    let mut port = guest.port();
    let pages = PassiveMachine::pages(&port);
    (0..pages).for_each(|p| port.change_page(mycelium_ram_core::PageIndex(p), Change::Zero));
}

/// Meets an active and follows it to the end.
fn follow(
    node: &Node,
    listener: &LinkListener,
    guest: &Guest,
    me: Member,
    stop: &Latch,
    patience: Duration,
) -> Result<Ended<MachinePort>, Exit> {
    let meeting = async {
        tokio::select! {
            met = meet(node, listener, guest, me) => met.map(Some),
            () = stop.wait() => Ok(None),
            () = orphaned(node, patience) => Ok(None),
        }
    };
    let Some((offer, link)) = node.runtime.block_on(meeting)? else { return Ok(Ended::Shutdown) };
    let (to_inbox, inbox) = channel();
    let staging_bytes_max = usize::try_from(node.spec.ram_bytes).unwrap_or(usize::MAX / 2) + STAGING_SLACK;
    let wire = {
        let _inside = node.runtime.enter();
        LinkWire::start(link.sender)
    };
    let frames = to_inbox.clone();
    let deliver = move |frame| drop(frames.send(Inbox::Frame(frame)));
    node.runtime.spawn(receive(link.receiver, staging_bytes_max + STAGING_SLACK, deliver));
    let shutdown = to_inbox.clone();
    let watch = stop.on_set(&node.runtime, move || drop(shutdown.send(Inbox::Shutdown)));
    let parts = PassiveParts {
        cfg: replica_config(node.args.timing),
        vm: node.vm.clone(),
        me,
        active: (offer.active, offer.generation),
        wire,
        machine: guest.port(),
        staging_bytes_max,
        arbiter: node.arbiter_port(to_inbox.clone(), Inbox::Arbiter)?,
        events: node.events.clone(),
    };
    let ended = passive::run(parts, &inbox, &to_inbox).or_exit(Failure::Host);
    watch.abort();
    ended
}

/// Returns when no active has come in good time. Only a process that has met nobody under its present incarnation waits
/// here, so no record lists it.
async fn orphaned(node: &Node, patience: Duration) {
    if patience.is_zero() {
        return std::future::pending().await;
    }
    tokio::time::sleep(patience).await;
    let reason = format!("no active came within {} s", patience.as_secs());
    tracing::warn!(%reason, "this replica ends, as --orphan-after says");
    node.events.note(Event::Stopped { reason });
}

/// Waits for an active whose machine is like ours.
async fn meet(
    node: &Node,
    listener: &LinkListener,
    guest: &Guest,
    me: Member,
) -> Result<(Offer, IncomingLink), Exit> {
    let mut told = None;
    loop {
        let Some(mut link) = listener.accept().await else {
            return Err(anyhow!("the listener ended")).or_exit(Failure::Host);
        };
        let offer = match first_message(&mut link.receiver).await {
            Ok(Message::Offer(offer)) if offer.active.node.0 == link.peer.0 => offer,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, "an active did not make an offer");
                continue;
            }
        };
        match judge(&offer, &guest.machine.fingerprint(), node.vm.as_str()) {
            Ok(()) => {
                let accept = Message::Accept(Accept { replica: me, staged: None });
                if answer(&link.sender, &accept).await.is_ok() {
                    return Ok((offer, link));
                }
            }
            Err(reason) => {
                // An active that cannot be followed asks again every second.
                if told.as_ref() != Some(&reason) {
                    tracing::warn!(%reason, "offer refused");
                    node.events.note(Event::Trouble { what: format!("offer refused: {reason}") });
                    told = Some(reason.clone());
                }
                let _ = answer(&link.sender, &Message::Refuse(reason)).await;
            }
        }
    }
}

/// Resumes the guest from the end of the takeover epoch. Switches learn its place and clients get the output the old
/// active may have kept to itself before the guest says anything new.
fn take_over(
    node: &Node,
    guest: &Guest,
    me: Member,
    promotion: Promotion<MachinePort>,
) -> Result<Mandate, Exit> {
    let epoch = promotion.inheritance.last.epoch;
    let elapsed: Duration = promotion.elapsed();
    guest.restore(&promotion.inheritance.last.state, elapsed).or_exit(Failure::Unexpected)?;
    guest.door.gate.begin(epoch.next());
    guest.ingress.resume_after(promotion.inheritance.ingress_seen);
    guest.announcer.start().or_exit(Failure::Host)?;
    for output in &promotion.inheritance.outputs {
        mycelium_ram::ports::OutputPort::emit(&*guest.outlet, output);
    }
    for (nic, packet) in &promotion.inheritance.ingress {
        guest.machine.inject_rx(usize::from(*nic), packet);
    }
    guest.machine.set_rx_enabled(true);
    guest.machine.resume().or_exit(Failure::Unexpected)?;
    guest.machine.announce();
    retire_journals(guest).or_exit(Failure::Host)?;
    node.events.note(Event::Resumed {
        generation: promotion.record.generation.0,
        epoch: epoch.0,
        elapsed_us: mycelium_ram::gate::micros(elapsed),
        replayed: promotion.inheritance.ingress.len() as u64,
        resent: promotion.inheritance.outputs.len() as u64,
    });
    node.say(&format!(
        "{} goes on here as generation {}, from {epoch}",
        node.vm, promotion.record.generation.0
    ));
    Ok(Mandate { me, record: promotion.record, resumed_from: epoch, ops: promotion.ops, mode: None })
}

/// Has the disks' journals end soon, so that the guest's first flush need not do it. From a thread of its own: writing out what
/// a replica was sent last can take a while.
fn retire_journals(guest: &Guest) -> std::io::Result<()> {
    let machine = Arc::clone(&guest.machine);
    let retire = move || {
        if let Err(error) = machine.retire_journals() {
            tracing::error!(%error, "a disk's journal cannot be ended yet; the guest's next flush tries again");
        }
    };
    std::thread::Builder::new().name("journals".into()).spawn(retire).map(drop)
}
