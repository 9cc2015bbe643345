//! The active side's protocol thread: one inbox, one core, no waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use mycelium_ram_core::hand_over::NotHandedOver;
use mycelium_ram_core::message::{Heartbeat, Message};
use mycelium_ram_core::mode::Mode;
use mycelium_ram_core::pace::Pace;
use mycelium_ram_core::primary::{Action, Event as Input, Primary, PrimaryConfig, Protection, StopReason};
use mycelium_ram_core::record::Record;
use mycelium_ram_core::settle::Reply;
use mycelium_ram_core::{EpochId, Generation, Member, NodeId, Time};

use crate::clock;
use crate::delays::Delays;
use crate::disk_log::DiskLog;
use crate::epoch_loop::{EpochLoop, Hold, Order, Report, Shared};
use crate::events::{Event, EventLog, Stats};
use crate::gate::{Gate, micros};
use crate::ingress::IngressTap;
use crate::ports::{ActiveMachine, Arbiter, Wire};
use crate::priority;
use crate::release::Releaser;

/// Figures are written to the timeline this often.
const STATS_EVERY: Duration = Duration::from_millis(100);

/// Ending a VM waits this long for the arbiter to take its replicas off the record.
const RETIRE_PATIENCE: Duration = Duration::from_secs(3);

/// Who has a guest that was to be handed over, or why it stayed.
pub type HandOverEnd = Result<(Member, Generation), NotHandedOver>;

/// Tells whoever asked for a handover how it ended.
pub struct HandedOver(pub Box<dyn FnOnce(HandOverEnd) + Send>);

impl std::fmt::Debug for HandedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandedOver").finish_non_exhaustive()
    }
}

/// What reaches the protocol thread.
#[derive(Debug)]
pub enum Inbox {
    /// A replica accepted our offer over this wire; it holds epochs up to `staged` from an earlier handshake.
    Joined {
        /// The replica.
        member: Member,
        /// Its newest whole epoch.
        staged: Option<EpochId>,
        /// The way to it.
        wire: Arc<dyn Wire>,
    },
    /// A frame from a replica.
    Frame(Bytes),
    /// The arbiter answered.
    Arbiter(Reply),
    /// The epoch thread reports.
    Epoch(Report),
    /// Output waits that did not before.
    OutputPending,
    /// Boot the guest anew.
    ResetGuest,
    /// Stop the guest where it is, for inspection or because the operator says so; it stays protected.
    PauseGuest,
    /// Let a guest go on that `PauseGuest` has stopped.
    ResumeGuest,
    /// The operator wants this replica no more: off the record with it.
    Dismiss(Member),
    /// End epochs at this pace, once the record has it.
    SetPace(Pace),
    /// Have output wait for its epoch or not, once the record says so.
    SetMode(Mode),
    /// Hand the guest to this node, or to any that may have it; who asked is told how it ended.
    HandOver(Option<NodeId>, HandedOver),
    /// End the VM, here and everywhere: the operator or the guest itself wants it.
    Shutdown,
}

/// Why an active side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Shutdown,
    /// It is not the active any more.
    Stopped(StopReason),
}

/// What an active side is made of.
#[derive(Debug)]
pub struct ActiveParts<M> {
    /// Timing.
    pub cfg: PrimaryConfig,
    /// This process.
    pub me: Member,
    /// The record that makes this process the active.
    pub record: Record,
    /// The epoch the guest continues from; 0 for a fresh boot.
    pub resumed_from: EpochId,
    /// Arbiter proposals this process has made before.
    pub ops: u64,
    /// The running guest.
    pub machine: M,
    /// Its door.
    pub gate: Arc<Gate>,
    /// Its letter box.
    pub ingress: Arc<IngressTap>,
    /// What it writes to its disks.
    pub disks: Arc<DiskLog>,
    /// Pages of which the content last sent is kept. With none, pages are sent whole and watched anew after each epoch.
    pub shadow_pages: usize,
    /// The arbiter.
    pub arbiter: Arc<dyn Arbiter>,
    /// The timeline.
    pub events: EventLog,
}

/// The protocol thread's state.
#[derive(Debug)]
struct Active {
    core: Primary,
    orders: Sender<Order>,
    wires: BTreeMap<Member, Arc<dyn Wire>>,
    /// Handshakes the core has not yet judged.
    arrivals: BTreeMap<Member, Arc<dyn Wire>>,
    gate: Arc<Gate>,
    releaser: Releaser,
    ingress: Arc<IngressTap>,
    arbiter: Arc<dyn Arbiter>,
    shared: Arc<Shared>,
    events: EventLog,
    actions: Vec<Action>,
    next_stats: Time,
    delays: Delays,
    told_first_output: bool,
    /// The newest epoch of each replica that the epoch thread knows to be held there.
    told_acked: BTreeMap<Member, EpochId>,
    /// Who is in sync, as last told.
    told_in_sync: Vec<Member>,
    told_pace: Option<Pace>,
    told_mode: Option<Mode>,
    retire_by: Option<Time>,
    /// Who waits to hear of a handover.
    handing_over: Option<HandedOver>,
    ended: Option<Ended>,
}

/// Protects a running guest until it ends. Blocks; returns why, and the machine with its guest stopped.
///
/// # Errors
/// When the epoch thread cannot be started.
///
/// # Panics
/// When the epoch thread panicked: the guest's state is then unknown and must not go on.
pub fn run<M: ActiveMachine>(
    parts: ActiveParts<M>,
    inbox: &Receiver<Inbox>,
    to_inbox: &Sender<Inbox>,
) -> std::io::Result<(Ended, M)> {
    priority::beat();
    let now = clock::now();
    let shared = Arc::new(Shared::default());
    let (orders, epoch_thread) = start_epoch_thread(
        &shared,
        &parts.events,
        to_inbox,
        EpochThread {
            machine: parts.machine,
            gate: parts.gate.clone(),
            ingress: parts.ingress.clone(),
            disks: parts.disks,
            shadow_pages: parts.shadow_pages,
        },
    )?;
    // Its frames leave with the next epoch, which is not to be long.
    let late_inbox = to_inbox.clone();
    let pending = move || drop(late_inbox.send(Inbox::OutputPending));
    let mut active = Active {
        core: Primary::new(parts.cfg, parts.me, parts.record, parts.resumed_from, parts.ops, now),
        orders,
        wires: BTreeMap::new(),
        arrivals: BTreeMap::new(),
        releaser: Releaser::start(parts.gate.clone(), shared.clone(), parts.cfg.fresh, pending)?,
        gate: parts.gate,
        ingress: parts.ingress,
        arbiter: parts.arbiter,
        shared,
        events: parts.events,
        actions: Vec::new(),
        next_stats: now,
        delays: Delays::new(),
        told_first_output: false,
        told_acked: BTreeMap::new(),
        told_in_sync: Vec::new(),
        told_pace: None,
        told_mode: None,
        retire_by: None,
        handing_over: None,
        ended: None,
    };
    active.events.note(protection_event(Protection::NoReplica));
    let ended = active.serve(inbox);
    active.gate.shut();
    let _ = active.orders.send(Order::Stop);
    active.wires.values().for_each(|w| w.close());
    active.ingress.stop();
    active.note_stats();
    let machine = epoch_thread.join().expect("the epoch thread panicked");
    Ok((ended, machine))
}

struct EpochThread<M> {
    machine: M,
    gate: Arc<Gate>,
    ingress: Arc<IngressTap>,
    disks: Arc<DiskLog>,
    shadow_pages: usize,
}

fn start_epoch_thread<M: ActiveMachine>(
    shared: &Arc<Shared>,
    events: &EventLog,
    to_inbox: &Sender<Inbox>,
    parts: EpochThread<M>,
) -> std::io::Result<(Sender<Order>, JoinHandle<M>)> {
    let (orders, from_protocol) = channel();
    let EpochThread { machine, gate, ingress, disks, shadow_pages } = parts;
    let doors = (gate, ingress, disks);
    let epoch_loop = EpochLoop::new(machine, doors, shared.clone(), events.clone(), shadow_pages)?;
    let reports = to_inbox.clone();
    let run = move || epoch_loop.run(&from_protocol, |r| drop(reports.send(Inbox::Epoch(r))));
    let thread = std::thread::Builder::new().name("epoch".into()).spawn(run)?;
    Ok((orders, thread))
}

impl Active {
    /// Everything that has arrived is handed to the core before time is judged.
    fn serve(&mut self, inbox: &Receiver<Inbox>) -> Ended {
        loop {
            let patience = self.core.next_tick().since(clock::now());
            match inbox.recv_timeout(patience) {
                Ok(first) => {
                    self.take(first);
                    while let Ok(next) = inbox.try_recv() {
                        self.take(next);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ended::Shutdown,
            }
            self.feed(Input::Progress(self.shared.progress.load(Ordering::Relaxed)));
            self.feed(Input::Tick);
            self.tell();
            if self.retire_by.is_some_and(|by| clock::now() >= by) {
                tracing::error!(
                    "the arbiter did not take the replicas off the record; one of them may take over"
                );
                return Ended::Shutdown;
            }
            if let Some(ended) = self.ended {
                return ended;
            }
        }
    }

    fn take(&mut self, item: Inbox) {
        match item {
            Inbox::Joined { member, staged, wire } => {
                self.arrivals.insert(member, wire);
                self.feed(Input::Joined { member, staged });
                if let Some(unwanted) = self.arrivals.remove(&member) {
                    unwanted.close();
                }
            }
            Inbox::Frame(frame) => self.take_frame(&frame),
            Inbox::Arbiter(reply) => self.feed(Input::Arbiter(reply)),
            Inbox::Epoch(Report::Sealed(epoch, done, bytes)) => {
                self.delays.sealed(epoch, bytes, clock::now());
                self.feed(Input::CutDone(done));
                self.feed(Input::Sealed(epoch));
            }
            Inbox::Epoch(Report::Spared(member, epoch)) => self.feed(Input::Spared(member, epoch)),
            Inbox::Epoch(Report::Filled(member, epoch)) => self.feed(Input::Filled(member, epoch)),
            Inbox::Epoch(Report::PagesPending) => self.feed(Input::PagesPending),
            Inbox::Epoch(Report::CutFailed) => self.feed(Input::CutFailed),
            Inbox::OutputPending => {
                self.delays.pending(clock::now());
                self.feed(Input::OutputPending(true));
            }
            Inbox::ResetGuest => self.order(Order::Reset),
            Inbox::PauseGuest => self.order(Order::Pause(Hold::Operator)),
            // A VM that is ending must not say another word.
            Inbox::ResumeGuest if self.retire_by.is_some() => {}
            Inbox::ResumeGuest => self.order(Order::Run(Hold::Operator)),
            Inbox::SetPace(pace) => self.feed(Input::SetPace(pace)),
            Inbox::SetMode(mode) => self.feed(Input::SetMode(mode)),
            Inbox::HandOver(to, answer) => self.hand_over(to, answer),
            Inbox::Dismiss(member) => self.feed(Input::Dismiss(member)),
            Inbox::Shutdown => {
                self.order(Order::Pause(Hold::Operator));
                self.gate.shut();
                self.retire_by.get_or_insert(clock::now() + RETIRE_PATIENCE);
                self.feed(Input::Retire);
            }
        }
    }

    fn hand_over(&mut self, to: Option<NodeId>, answer: HandedOver) {
        if self.handing_over.is_some() {
            return (answer.0)(Err(NotHandedOver::UnderWay));
        }
        let incarnation = |node| self.core.record().in_sync.iter().map(|l| l.member).find(|m| m.node == node);
        let member = to.map(|node| incarnation(node).ok_or(node)).transpose();
        match member {
            Err(node) => (answer.0)(Err(NotHandedOver::NotInSync(node))),
            Ok(member) => {
                self.handing_over = Some(answer);
                self.feed(Input::HandOver(member));
            }
        }
    }

    fn answer_hand_over(&mut self, how: HandOverEnd) {
        if let Some(answer) = self.handing_over.take() {
            (answer.0)(how);
        }
    }

    fn take_frame(&mut self, frame: &Bytes) {
        match Message::decode(frame) {
            Ok(Message::Heartbeat(hb)) => {
                // Every heartbeat repeats the newest one.
                let told = self.told_acked.get(&hb.from).copied();
                if let Some(epoch) = hb.epoch.filter(|epoch| told < Some(*epoch)) {
                    self.told_acked.insert(hb.from, epoch);
                    self.order(Order::Acked(hb.from, epoch));
                }
                self.feed(Input::Heartbeat(hb));
            }
            Ok(Message::Deposed { generation, .. }) => self.feed(Input::Deposed(generation)),
            Ok(other) => tracing::debug!(?other, "a replica has no business sending this"),
            Err(error) => tracing::warn!(%error, "a frame from a replica cannot be read"),
        }
    }

    fn feed(&mut self, input: Input) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.handle(clock::now(), input, &mut actions);
        for action in actions.drain(..) {
            self.act(action);
        }
        self.actions = actions;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Cut(epoch) => {
                self.delays.ordered(clock::now());
                self.order(Order::Cut(epoch));
            }
            Action::Heartbeat(to, hb) => self.beat(to, hb),
            Action::TellDeposed(to, generation, epoch) => {
                self.datagram(to, &Message::Deposed { generation, epoch });
            }
            Action::Yield(to, said) => {
                self.order(Order::ForwardInput);
                self.datagram(to, &Message::Yield(said));
            }
            Action::NotHandedOver(why) => {
                self.events.note(Event::Trouble { what: why.to_string() });
                self.answer_hand_over(Err(why));
            }
            Action::Release(through) => {
                self.releaser.release(through);
                self.delays.released(through, clock::now());
            }
            Action::Gate(mode) => self.gate.set_mode(mode),
            Action::Lease(until) => {
                if self.gate.lease(until) {
                    self.releaser.release_leased();
                }
            }
            Action::Arbiter(request) => self.arbiter.ask(request),
            Action::Seed(member) => self.connect(member, |wire| Order::Seed(member, wire)),
            Action::Resend(member, kept) => self.connect(member, |wire| Order::Resend(member, kept, wire)),
            Action::Drop(member) => self.disconnect(member),
            Action::PauseGuest => self.order(Order::Pause(Hold::Policy)),
            Action::RunGuest => self.order(Order::Run(Hold::Policy)),
            Action::Stop(reason) => {
                self.gate.shut();
                self.events.note(Event::Stopped { reason: reason.to_string() });
                if let StopReason::HandedOver { generation, to } = reason {
                    self.answer_hand_over(Ok((to, generation)));
                }
                self.ended = Some(Ended::Stopped(reason));
            }
            Action::Retired => self.ended = Some(Ended::Shutdown),
            Action::Status(protection) => {
                // First who, then what follows from it.
                self.tell_in_sync();
                self.events.note(protection_event(protection));
            }
        }
    }

    /// Gives the machine its way to a replica whose handshake the core has accepted.
    fn connect(&mut self, member: Member, order: impl FnOnce(Arc<dyn Wire>) -> Order) {
        let Some(wire) = self.arrivals.remove(&member) else { return };
        self.events.note(Event::Joined { replica: member.to_string() });
        self.told_acked.remove(&member);
        if let Some(old) = self.wires.insert(member, wire.clone()) {
            old.close();
        }
        self.ingress.set_wires(self.wires.values().cloned().collect());
        self.order(order(wire));
    }

    fn disconnect(&mut self, member: Member) {
        self.events.note(Event::Dropped { replica: member.to_string() });
        self.told_acked.remove(&member);
        if let Some(wire) = self.wires.remove(&member) {
            wire.close();
        }
        self.ingress.set_wires(self.wires.values().cloned().collect());
        self.order(Order::Drop(member));
    }

    fn beat(&self, to: Member, hb: Heartbeat) {
        self.datagram(to, &Message::Heartbeat(hb));
    }

    fn datagram(&self, to: Member, message: &Message) {
        if let Some(wire) = self.wires.get(&to) {
            wire.datagram(message.encode());
        }
    }

    fn order(&self, order: Order) {
        // The epoch thread ends only after this one has told it to.
        let _ = self.orders.send(order);
    }

    fn tell(&mut self) {
        let now = clock::now();
        if let (false, Some(at)) = (self.told_first_output, self.gate.first_emitted()) {
            self.told_first_output = true;
            self.events.note(Event::FirstOutput { at_ns: at.0 });
        }
        self.tell_in_sync();
        if let Some(pace) = self.core.pace().filter(|pace| self.told_pace != Some(*pace)) {
            self.told_pace = Some(pace);
            self.events.note(Event::Pace { pace });
        }
        let mode = self.core.record().mode;
        if self.told_mode != Some(mode) {
            self.told_mode = Some(mode);
            self.events.note(Event::Mode { mode });
        }
        if now >= self.next_stats {
            self.next_stats = now + STATS_EVERY;
            self.note_stats();
        }
    }

    fn tell_in_sync(&mut self) {
        let in_sync = self.core.record().in_sync.iter().map(|l| l.member);
        if !in_sync.clone().eq(self.told_in_sync.iter().copied()) {
            self.told_in_sync = in_sync.collect();
            let replicas = self.told_in_sync.iter().map(Member::to_string).collect();
            self.events.note(Event::InSync { replicas });
        }
    }

    fn note_stats(&self) {
        let figures = self.shared.figures.lock().map(|f| *f).unwrap_or_default();
        let delays = self.delays.figures();
        let (sealed, released) = (self.core.open_epoch().prev(), self.core.released());
        self.events.note(Event::Stats(Stats {
            epochs: figures.epochs,
            committed: released.0,
            pages: figures.pages,
            bytes: figures.bytes,
            pause_us: figures.pause.whole,
            pause: figures.pause,
            output_delay_us: self.gate.delay_us(),
            wait_us: delays.wait,
            cut_us: delays.cut,
            commit_us: delays.commit,
            gate_bytes: self.gate.bytes() as u64,
            exposure_us: self.core.exposure(clock::now()).map(micros),
            exposure_bytes: self.delays.unreleased_bytes(),
            lag: sealed.0.saturating_sub(released.0),
            disk_left_bytes: figures.disk_left.0,
            disk_bytes: figures.disk_left.1,
        }));
    }
}

/// Protection in words an operator can act on.
fn protection_event(protection: Protection) -> Event {
    let (state, reason) = match protection {
        Protection::NoReplica => ("unprotected", "no replica is connected".to_owned()),
        Protection::Seeding => ("unprotected", "a replica is receiving its first copy".to_owned()),
        Protection::Joining => ("unprotected", "a replica holds everything and is being listed".to_owned()),
        Protection::Protected(n) => ("protected", format!("{n} in sync")),
        Protection::ReplicaSilent(why) => {
            ("waiting", format!("a replica in sync is silent ({why:?}); output waits"))
        }
        Protection::HandingOver => {
            ("handing over", "the guest stands still while a replica in sync takes over".to_owned())
        }
        Protection::Halted => ("halted", "a replica in sync is silent and the policy is to halt".to_owned()),
        Protection::Stopped => ("stopped", "another process is the active now".to_owned()),
    };
    let protected = matches!(protection, Protection::Protected(_) | Protection::HandingOver);
    Event::Protection { state: state.to_owned(), reason, protected }
}
