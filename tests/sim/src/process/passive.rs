//! The passive role: staging and applying epochs, driven by the core's `Replica`.

use std::collections::VecDeque;

use bytes::Bytes;
use mycelium_ram_core::disk::read_part;
use mycelium_ram_core::ingress::IngressLog;
use mycelium_ram_core::message::{Accept, Message, Offer, Output, PartKind};
use mycelium_ram_core::page_codec::{CheckedPart, PAGE_BYTES};
use mycelium_ram_core::record::{Change, Record};
use mycelium_ram_core::replica::{Action, Event, Replica, ReplicaConfig};
use mycelium_ram_core::settle::Request as ArbiterRequest;
use mycelium_ram_core::stage::{Piece, StagedEpoch, Stager};
use mycelium_ram_core::{EpochId, Member, VmId, state_codec};

use super::{Cx, Todo};
use crate::effect::{ConnId, Effect, Input, Point, Report, Timer};
use crate::guest::{self, Image, Request, change_disk};
use crate::limits;

/// The replica's state.
#[derive(Debug)]
pub struct Passive {
    pub(super) replica: Replica,
    todo: Todo<Action>,
    active: Member,
    conn: Option<ConnId>,
    stager: Stager,
    pub(super) image: Image,
    pub(super) state: Bytes,
    /// Of the newest whole epoch.
    newest_state: Option<Bytes>,
    backlog: VecDeque<StagedEpoch>,
    applying: bool,
    pub(super) gated: Vec<(EpochId, Output)>,
    pub(super) released: EpochId,
    pub(super) ingress: IngressLog<Request>,
    progress: u64,
    hung: VecDeque<Message>,
}

impl Passive {
    /// A process that waits becomes a replica when this input is an offer.
    pub(super) fn accept(vm: &VmId, input: &Input, cx: &mut Cx<'_>) -> Option<Self> {
        let Input::Bundle(conn, frame) = input else { return None };
        let Ok(Message::Offer(offer)) = Message::decode(frame) else { return None };
        let replica = Replica::new(
            ReplicaConfig::default(),
            vm.clone(),
            cx.me,
            (offer.active, offer.generation),
            cx.now,
        );
        let mut passive = Self {
            replica,
            todo: Todo::default(),
            active: offer.active,
            conn: None,
            stager: Stager::new(limits::STAGE_BYTES),
            // Its disk has been somebody else's.
            image: guest::blank(0xee),
            state: Bytes::new(),
            newest_state: None,
            backlog: VecDeque::new(),
            applying: false,
            gated: Vec::new(),
            released: EpochId(0),
            ingress: IngressLog::default(),
            progress: 0,
            hung: VecDeque::new(),
        };
        passive.offered(*conn, &offer, cx);
        Some(passive)
    }

    /// The core's state machine.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Image and registers as they would be after applying everything staged.
    #[must_use]
    pub fn whole(&self) -> (Image, Bytes) {
        let (mut image, mut state) = (self.image.clone(), self.state.clone());
        for epoch in &self.backlog {
            epoch.parts.iter().for_each(|part| apply(&mut image, part));
            state = epoch.end.state.clone();
        }
        (image, state)
    }

    fn tell(&mut self, event: Event, cx: &mut Cx<'_>) {
        let mut actions = Vec::new();
        self.replica.handle(cx.now, event, &mut actions);
        self.todo.add(actions, cx);
    }

    /// Returns the epoch and record when this process is to take over now.
    pub(super) fn handle(&mut self, input: Input, cx: &mut Cx<'_>) -> Option<(EpochId, Record)> {
        let mut promoted = None;
        match input {
            Input::Bundle(conn, frame) => self.bundle(conn, &frame, cx),
            Input::Datagram(frame) => self.datagram(&frame, cx),
            Input::Arbiter(reply) => self.tell(Event::Arbiter(reply), cx),
            Input::Closed(conn) => self.conn = self.conn.filter(|c| *c != conn),
            Input::Timer(Timer::Tick) => self.tick(cx),
            Input::Timer(Timer::Step) => promoted = self.step(cx),
            Input::Timer(Timer::ApplyNext) => self.apply_next(cx),
            Input::Frame(_) | Input::Foreign | Input::Peers(_) | Input::Dismiss(_) => {}
            Input::HandOver | Input::SetMode(_) | Input::Timer(_) => {}
        }
        // A takeover that failed lets staging go on with what arrived meanwhile.
        self.stage_whole(cx);
        promoted
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        if !cx.hung {
            self.progress += 1;
            self.tell(Event::Progress(self.progress), cx);
        }
        self.tell(Event::Tick, cx);
        if self.backlog.len() > limits::BACKLOG_EPOCHS || self.stager.bytes() > limits::STAGE_BYTES {
            cx.report(Report::Unbounded(format!("{} epochs wait to be applied", self.backlog.len())));
        }
    }

    fn datagram(&mut self, frame: &Bytes, cx: &mut Cx<'_>) {
        let message = Message::decode(frame).expect("the simulated network does not damage frames");
        match message {
            Message::Heartbeat(heartbeat) => {
                if heartbeat.from == self.active {
                    self.released = self.released.max(heartbeat.epoch.unwrap_or_default());
                }
                self.tell(Event::Heartbeat(heartbeat), cx);
            }
            Message::Yield(said) => self.tell(Event::Yielded(said), cx),
            _ => {}
        }
    }

    fn bundle(&mut self, conn: ConnId, frame: &Bytes, cx: &mut Cx<'_>) {
        let message = Message::decode(frame).expect("the simulated network does not damage frames");
        match message {
            Message::Offer(offer) => self.offered(conn, &offer, cx),
            message if self.conn == Some(conn) && cx.hung => self.hung.push_back(message),
            message if self.conn == Some(conn) => self.content(message, cx),
            _ => {}
        }
    }

    /// The active connects, for the first time or again. What was received of unfinished epochs will be sent anew.
    fn offered(&mut self, conn: ConnId, offer: &Offer, cx: &mut Cx<'_>) {
        if offer.active != self.active {
            return;
        }
        self.conn = Some(conn);
        self.stager.abort_open();
        self.hung.clear();
        let accept = Accept { replica: cx.me, staged: self.stager.staged() };
        cx.fx.push(Effect::Bundle(conn, Message::Accept(accept).encode()));
        cx.fx.push(Effect::Point(Point::Accepted));
    }

    /// The staging loop no longer hangs.
    pub(super) fn go_on(&mut self, cx: &mut Cx<'_>) {
        for message in std::mem::take(&mut self.hung) {
            self.content(message, cx);
        }
        self.stage_whole(cx);
    }

    fn content(&mut self, message: Message, cx: &mut Cx<'_>) {
        let result = match message {
            Message::Part(part) => self.stager.part(part).map(|ready| {
                ready.iter().for_each(|part| apply(&mut self.image, part));
                cx.fx.push(Effect::Point(Point::PartStaged));
            }),
            Message::End(end) => self.stager.end(end),
            Message::Ingress(ingress) => {
                for (n, (_, frame)) in (ingress.first.0..).zip(&ingress.frames) {
                    let seq = mycelium_ram_core::IngressSeq(n);
                    self.ingress.keep(seq, frame.len(), Request::decode(frame));
                }
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            self.hang_up(&error, cx);
        }
    }

    fn hang_up(&mut self, error: &dyn std::error::Error, cx: &mut Cx<'_>) {
        cx.report(Report::Remark(error.to_string()));
        if let Some(conn) = self.conn.take() {
            cx.fx.push(Effect::Close(conn));
        }
    }

    /// Acknowledges every epoch that is whole. Parts that arrive while the takeover epoch is fixed stay where they are.
    fn stage_whole(&mut self, cx: &mut Cx<'_>) {
        while !cx.hung && self.replica.may_stage() {
            let mut staged = match self.stager.next_whole() {
                Ok(Some(staged)) => staged,
                Ok(None) => return,
                Err(error) => return self.hang_up(&error, cx),
            };
            match state_codec::decode(self.newest_state.as_deref(), &staged.end.state) {
                Ok(state) => staged.end.state = state,
                Err(error) => return self.hang_up(&error, cx),
            }
            self.newest_state = Some(staged.end.state.clone());
            let end = &staged.end;
            self.ingress.seen(end.ingress);
            self.released = self.released.max(end.released);
            self.gated.extend(end.outputs.iter().map(|o| (end.epoch, o.clone())));
            let released = self.released;
            self.gated.retain(|(epoch, _)| *epoch > released);
            let epoch = end.epoch;
            self.backlog.push_back(staged);
            cx.fx.push(Effect::Point(Point::EpochStaged));
            self.tell(Event::Staged(epoch), cx);
            self.apply_later(cx);
        }
    }

    fn apply_later(&mut self, cx: &mut Cx<'_>) {
        if !self.applying && !self.backlog.is_empty() {
            self.applying = true;
            let cost = cx.rng.between(cx.costs.apply);
            cx.after(cost, Timer::ApplyNext);
        }
    }

    fn apply_next(&mut self, cx: &mut Cx<'_>) {
        self.applying = false;
        self.apply_oldest();
        self.apply_later(cx);
    }

    /// Whether there was one.
    pub(super) fn apply_oldest(&mut self) -> bool {
        let Some(epoch) = self.backlog.pop_front() else { return false };
        epoch.parts.iter().for_each(|part| apply(&mut self.image, part));
        self.state = epoch.end.state;
        true
    }

    fn step(&mut self, cx: &mut Cx<'_>) -> Option<(EpochId, Record)> {
        match self.todo.next(cx)?.1 {
            Action::Heartbeat(heartbeat) => {
                cx.datagram(self.active, &Message::Heartbeat(heartbeat));
                cx.fx.push(Effect::Point(Point::AckSent));
            }
            Action::Arbiter(request) => {
                let takes = matches!(&request, ArbiterRequest::Swap(s) if matches!(s.change, Change::TakeOver { .. }));
                cx.fx.push(Effect::Ask(request));
                if takes {
                    cx.fx.push(Effect::Point(Point::TakeoverSent));
                }
            }
            Action::Suspect(why) => cx.report(Report::Remark(format!("{why:?}"))),
            Action::Taking => {}
            Action::Promote(epoch, record) => return Some((epoch, record)),
            Action::Expelled(why) => cx.fx.push(Effect::Exit(why.to_string())),
        }
        None
    }
}

fn apply(image: &mut Image, part: &Piece) {
    let payload = part.payload.clone();
    match part.kind {
        PartKind::Pages => {
            let part =
                CheckedPart::check(payload, limits::GUEST_PAGES).expect("the active sends well-formed parts");
            part.apply(|page, change| {
                change.apply(&mut image[usize::try_from(page.0).expect("a small guest")]);
            });
        }
        PartKind::Disks => {
            let changes = read_part(&payload, &[limits::DISK_BLOCKS * PAGE_BYTES as u64]);
            let changes = changes.expect("the active sends well-formed parts");
            changes.iter().for_each(|change| change_disk(image, change));
        }
    }
}
