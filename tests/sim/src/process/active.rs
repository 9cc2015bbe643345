//! The active role: the guest, its gate, and the sessions with replicas, driven by the core's `Primary`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mycelium_ram_core::disk::DiskChange;
use mycelium_ram_core::message::{Accept, Heartbeat, Ingress, Message, Offer, Output};
use mycelium_ram_core::output::{GateMode, Offered, OutputQueue};
use mycelium_ram_core::primary::{Action, Event, Primary, StopReason};
use mycelium_ram_core::record::{Change, Record};
use mycelium_ram_core::sabotage::{Sabotage, sabotaged};
use mycelium_ram_core::settle::Request as ArbiterRequest;
use mycelium_ram_core::shadow::Shadow;
use mycelium_ram_core::{EpochId, Generation, IngressSeq, Member, NodeId, PageIndex, Time};

use super::release::Releaser;
use super::session::Session;
use super::{Cx, Todo};
use crate::clock::MS;
use crate::effect::{ConnId, Effect, Frame, Input, Point, Report, Timer};
use crate::guest::{Entry, Guest, Request};
use crate::limits;

/// A connection on which a replica has not been attached yet gets this long.
const HANDSHAKE: u64 = 500 * MS;

/// A connection to a process that may become, or is, our replica.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) conn: ConnId,
    pub(super) opened: Time,
    pub(super) accepted: bool,
}

/// The active's state.
#[derive(Debug)]
pub struct Active {
    pub(super) primary: Primary,
    pub(super) todo: Todo<Action>,
    pub(super) guest: Guest,
    pub(super) shadow: Shadow,
    /// The epoch before, and its state.
    pub(super) state_before: Option<(EpochId, Bytes)>,
    pub(super) gate: OutputQueue<Output>,
    pub(super) lease: Time,
    pub(super) releaser: Releaser,
    pub(super) sessions: BTreeMap<Member, Session>,
    /// Blocks of the disk copied in the open epoch.
    pub(super) copies: BTreeMap<PageIndex, DiskChange>,
    pub(super) copying: bool,
    pub(super) links: BTreeMap<Member, Link>,
    pub(super) conns: u64,
    pub(super) ingress: IngressSeq,
    pub(super) rx: VecDeque<Request>,
    pub(super) cutting: bool,
    pub(super) cut_waits: bool,
    pub(super) paused: bool,
    pub(super) starting: bool,
    pub(super) announced_at: Time,
    /// The newest epoch whose output is out.
    pub(super) let_out: EpochId,
    pub(super) progress: u64,
}

impl Active {
    pub(super) fn boot(record: Record, cx: &mut Cx<'_>) -> Self {
        let primary = Primary::new(cx.primary_config(), cx.me, record, EpochId(0), 1, cx.now);
        let mut active = Self::new(primary, Guest::boot(), IngressSeq(0));
        active.tell(Event::Tick, cx);
        cx.after(MS, Timer::Resume);
        active
    }

    pub(super) fn new(primary: Primary, guest: Guest, ingress: IngressSeq) -> Self {
        let gate = OutputQueue::new(GateMode::Open, primary.open_epoch());
        Self {
            primary,
            todo: Todo::default(),
            guest,
            gate,
            lease: Time(0),
            releaser: Releaser::default(),
            sessions: BTreeMap::new(),
            copies: BTreeMap::new(),
            copying: false,
            shadow: Shadow::new(limits::GUEST_PAGES, limits::SHADOW_PAGES),
            state_before: None,
            links: BTreeMap::new(),
            conns: 0,
            ingress,
            rx: VecDeque::new(),
            cutting: false,
            cut_waits: false,
            paused: false,
            starting: true,
            announced_at: Time(0),
            let_out: EpochId(0),
            progress: 0,
        }
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The core's state machine.
    #[must_use]
    pub fn primary(&self) -> &Primary {
        &self.primary
    }

    pub(super) fn tell(&mut self, event: Event, cx: &mut Cx<'_>) {
        let mut actions = Vec::new();
        self.primary.handle(cx.now, event, &mut actions);
        self.todo.add(actions, cx);
    }

    pub(super) fn handle(&mut self, input: Input, cx: &mut Cx<'_>) {
        match input {
            Input::Bundle(conn, frame) => self.bundle(conn, &frame, cx),
            Input::Datagram(frame) => self.datagram(&frame, cx),
            Input::Arbiter(reply) => self.tell(Event::Arbiter(reply), cx),
            Input::Frame(request) => self.frame(request, cx),
            Input::Foreign => self.announce_again(cx),
            Input::Closed(conn) => self.closed(conn),
            Input::Peers(peers) => self.discover(&peers, cx),
            Input::Dismiss(node) => self.dismiss(node, cx),
            Input::HandOver => {
                self.tell(Event::HandOver(None), cx);
                cx.fx.push(Effect::Point(Point::HandOverAsked));
            }
            Input::SetMode(mode) => {
                self.tell(Event::SetMode(mode), cx);
                cx.fx.push(Effect::Point(Point::ModeAsked));
            }
            Input::Timer(timer) => self.timer(timer, cx),
        }
    }

    fn timer(&mut self, timer: Timer, cx: &mut Cx<'_>) {
        match timer {
            Timer::Tick => self.tick(cx),
            // Heartbeats say what has been released: they wait for the frames to be out.
            Timer::Step if self.releaser.is_running() => cx.after(super::STEP, Timer::Step),
            Timer::Step => {
                if let Some((decided_at, action)) = self.todo.next(cx) {
                    self.perform(action, decided_at, cx);
                }
            }
            Timer::CutDone => self.cut_done(cx),
            Timer::SendNext(member) => self.send_next(member, cx),
            Timer::ReleaseNext => self.release_next(cx),
            Timer::CopyNext => self.copy_next(cx),
            Timer::GuestTick => self.guest_tick(cx),
            Timer::Resume => self.resume(cx),
            Timer::Announce(n) => self.announce(n, cx),
            Timer::Discover | Timer::ApplyNext => {}
        }
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        if !cx.hung {
            self.progress += 1;
            self.tell(Event::Progress(self.progress), cx);
        }
        self.tell(Event::Tick, cx);
        if self.sessions.values().any(|s| s.waiting() > limits::SEND_FRAMES) {
            cx.report(Report::Unbounded(format!("over {} frames wait for a replica", limits::SEND_FRAMES)));
        }
    }

    fn datagram(&mut self, frame: &Bytes, cx: &mut Cx<'_>) {
        match Message::decode(frame).expect("the simulated network does not damage frames") {
            Message::Heartbeat(heartbeat) => self.heartbeat(heartbeat, cx),
            Message::Deposed { generation, .. } => self.tell(Event::Deposed(generation), cx),
            _ => {}
        }
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat, cx: &mut Cx<'_>) {
        if let (Some(session), Some(epoch)) = (self.sessions.get_mut(&heartbeat.from), heartbeat.epoch) {
            session.acked(epoch);
        }
        self.tell(Event::Heartbeat(heartbeat), cx);
    }

    fn bundle(&mut self, conn: ConnId, frame: &Bytes, cx: &mut Cx<'_>) {
        match Message::decode(frame).expect("the simulated network does not damage frames") {
            Message::Accept(Accept { replica, staged }) => {
                let Some(link) = self.links.get_mut(&replica).filter(|l| l.conn == conn) else { return };
                link.accepted = true;
                self.tell(Event::Joined { member: replica, staged }, cx);
            }
            Message::Offer(Offer { generation, .. }) if generation > self.primary.record().generation => {
                self.tell(Event::Deposed(generation), cx);
            }
            _ => {}
        }
    }

    fn closed(&mut self, conn: ConnId) {
        self.links.retain(|_, link| link.conn != conn);
        self.sessions.values_mut().for_each(|s| s.closed(conn));
    }

    /// Offers the VM to every process that is not our replica yet.
    fn discover(&mut self, peers: &[Member], cx: &mut Cx<'_>) {
        let patience = std::time::Duration::from_nanos(HANDSHAKE);
        let (sessions, now) = (&self.sessions, cx.now);
        let attached = |m: &Member, conn| sessions.get(m).is_some_and(|s| s.conn() == Some(conn));
        let stale = |m: &Member, l: &Link| !attached(m, l.conn) && now.since(l.opened) > patience;
        let given_up: Vec<_> = self.links.iter().filter(|(m, l)| stale(m, l)).map(|(m, _)| *m).collect();
        for member in given_up {
            self.unlink(member, cx);
        }
        for peer in peers {
            if !self.links.contains_key(peer) {
                self.offer(*peer, cx);
            }
        }
    }

    fn offer(&mut self, to: Member, cx: &mut Cx<'_>) {
        self.conns += 1;
        let conn = ConnId(cx.me.incarnation.0 << 16 | self.conns);
        self.links.insert(to, Link { conn, opened: cx.now, accepted: false });
        let record = self.primary.record();
        let (vm, generation): (_, Generation) = (record.vm.clone(), record.generation);
        let offer = Offer { vm, active: cx.me, generation, fingerprint: Bytes::new() };
        cx.fx.push(Effect::Open(conn, to));
        cx.fx.push(Effect::Bundle(conn, Message::Offer(offer).encode()));
        cx.fx.push(Effect::Point(Point::OfferSent));
    }

    /// A handshake with a process of this node ends here; of one that has joined, the core knows when it may go. Until then
    /// it is served on its connection, but dialled anew should it be wanted again.
    fn dismiss(&mut self, node: NodeId, cx: &mut Cx<'_>) {
        let known = self.sessions.keys().chain(self.links.keys()).copied();
        let met: BTreeSet<_> = known.filter(|m| m.node == node).collect();
        for member in met {
            if self.sessions.contains_key(&member) {
                self.links.remove(&member);
            } else {
                self.unlink(member, cx);
            }
            self.tell(Event::Dismiss(member), cx);
        }
        cx.fx.push(Effect::Point(Point::Dismissed));
    }

    pub(super) fn unlink(&mut self, member: Member, cx: &mut Cx<'_>) {
        if let Some(link) = self.links.remove(&member) {
            cx.fx.push(Effect::Close(link.conn));
        }
    }

    fn perform(&mut self, action: Action, decided_at: Time, cx: &mut Cx<'_>) {
        match action {
            Action::Cut(epoch) => self.cut(epoch, cx),
            Action::Heartbeat(to, heartbeat) => cx.datagram(to, &Message::Heartbeat(heartbeat)),
            Action::TellDeposed(to, generation, epoch) => {
                cx.datagram(to, &Message::Deposed { generation, epoch });
            }
            Action::Yield(to, said) => {
                cx.datagram(to, &Message::Yield(said));
                cx.fx.push(Effect::Point(Point::Yielded));
            }
            Action::NotHandedOver(why) => cx.report(Report::Remark(why.to_string())),
            Action::Release(through) => self.release(through, decided_at, cx),
            Action::Gate(mode) => self.set_gate(mode, cx),
            Action::Lease(until) => self.release_leased(until, cx),
            Action::Arbiter(request) => ask(request, cx),
            Action::Seed(member) => self.seed(member, cx),
            Action::Resend(member, kept) => self.resend(member, kept),
            Action::Drop(member) => {
                let served_on = self.sessions.remove(&member).and_then(|s| s.conn());
                cx.fx.extend(served_on.map(Effect::Close));
                self.unlink(member, cx);
                if self.sessions.is_empty() {
                    self.guest.note_changes(false);
                    if !sabotaged(Sabotage::CopiesOutliveTheLog) {
                        self.copies.clear();
                    }
                }
            }
            Action::PauseGuest => self.paused = true,
            Action::RunGuest => {
                self.paused = false;
                self.drain_rx(cx);
            }
            Action::Stop(reason) => {
                self.gate.discard();
                if matches!(reason, StopReason::HandedOver { .. }) {
                    cx.report(Report::HandedOver);
                }
                cx.fx.push(Effect::Exit(reason.to_string()));
            }
            Action::Retired => cx.fx.push(Effect::Exit("retired".to_owned())),
            Action::Status(status) => cx.report(Report::Status(status)),
        }
    }

    pub(super) fn runs(&self) -> bool {
        !(self.cutting || self.paused || self.starting)
    }

    fn frame(&mut self, request: Request, cx: &mut Cx<'_>) {
        if self.runs() && self.rx.is_empty() {
            self.give(request, cx);
        } else if self.rx.len() < limits::RX_FRAMES {
            self.rx.push_back(request);
        }
    }

    pub(super) fn drain_rx(&mut self, cx: &mut Cx<'_>) {
        while self.runs()
            && let Some(request) = self.rx.pop_front()
        {
            self.give(request, cx);
        }
    }

    /// Numbers a frame, forwards it to the replicas and gives it to the guest.
    pub(super) fn give(&mut self, request: Request, cx: &mut Cx<'_>) {
        self.ingress = self.ingress.next();
        let message = Message::Ingress(Ingress { first: self.ingress, frames: vec![(0, request.encode())] });
        for conn in self.sessions.values().filter_map(Session::conn) {
            cx.fx.push(Effect::Bundle(conn, message.encode()));
        }
        let before = self.guest.history();
        let Some((answer, executed)) = self.guest.receive(request) else { return };
        if executed {
            cx.report(Report::History(before, Entry::Request(request)));
        }
        self.output(answer, cx);
    }

    fn guest_tick(&mut self, cx: &mut Cx<'_>) {
        let wait = cx.rng.between(cx.costs.guest_tick);
        cx.after(wait, Timer::GuestTick);
        if self.runs() {
            cx.report(Report::History(self.guest.history(), Entry::Tick));
            self.guest.apply(&Entry::Tick);
        }
    }

    fn output(&mut self, answer: crate::guest::Answer, cx: &mut Cx<'_>) {
        let data = answer.encode();
        let size = data.len();
        let output = Output { port: mycelium_ram_core::message::Port::Net(0), offset: 0, data };
        let leased = self.is_leased(cx);
        match self.gate.offer(output, size, leased) {
            // On a lease, the look at the clock and the frame are next to each other.
            Offered::Pass(_) if self.releaser.is_empty() && !leased => {
                cx.fx.push(Effect::Emit(Frame::Answer(answer)));
            }
            Offered::Pass(output) => {
                self.releaser.push([output]);
                if leased {
                    self.releaser.go(cx.now, cx);
                } else {
                    self.releaser.go_if_open(cx);
                }
            }
            Offered::Held => self.tell(Event::OutputPending(true), cx),
            Offered::Full(_) => {}
        }
    }
}

fn ask(request: ArbiterRequest, cx: &mut Cx<'_>) {
    let point = match &request {
        ArbiterRequest::Read => None,
        ArbiterRequest::Swap(swap) => match swap.change {
            Change::List { .. } => Some(Point::ListSent),
            Change::Unlist { .. } => Some(Point::UnlistSent),
            Change::Create { .. }
            | Change::SetPace { .. }
            | Change::SetMode { .. }
            | Change::TakeOver { .. } => None,
        },
    };
    cx.fx.push(Effect::Ask(request));
    cx.fx.extend(point.map(Effect::Point));
}
