//! The active side of a protected VM: who must hold an epoch before its output may leave, and who may stop waiting.
//!
//! A replica's standing:
//!
//! ```text
//!            Joined          holds all it lacked       holds all that was released       swap applied
//!   (none) ─────────> Seeding ───────────────> Joining ───────────────────────> Listing ────────────> InSync
//!                        │ silent                 │ silent                                             │ ^ heard
//!                        v                        v                             swap applied     silent v │ again
//!                     dropped                  dropped <───────────────────────────── Leaving <─────── Lost
//! ```
//! A replica that the operator dismisses goes the way of a lost one: it is dropped before it is listed, or taken off the record.
//! From `Joining` on the replica is *required*: no output leaves before it holds the epoch. It stays required until the
//! arbiter has recorded its removal, because as long as the record may list it, it may take over from what it holds.
//!
//! Any record of a later generation stops the guest for good. That is also how a planned handover ends (see
//! [`crate::hand_over`]).

mod lease;
mod peer;

use std::time::Duration;

use crate::detector::{Detector, DetectorConfig, Suspicion};
use crate::hand_over::{HandOver, NotHandedOver};
use crate::ids::{EpochId, Generation, Member, OpId, VmId};
use crate::limits;
use crate::message::{Heartbeat, Yield};
use crate::mode::Mode;
use crate::output::GateMode;
use crate::pace::Pace;
use crate::record::{Change, LossPolicy, Record, Swap};
use crate::sabotage::{Sabotage, sabotaged};
use crate::settle::{Proposal, Reply, Request, Settled};
use crate::time::Time;

use lease::Begun;
use peer::{Peer, RoundTrip, Standing};

/// The active side's timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryConfig {
    /// Interval of heartbeats.
    pub heartbeat_every: Duration,
    /// How patient to be with a replica. More patient than a replica is with us: losing protection is worse than waiting.
    pub detector: DetectorConfig,
    /// Output is released only on word from a replica that has heard from us within this time. Below a replica's
    /// detector floor, so that a primary that was stopped and continued finds every acknowledgement too old.
    pub fresh: Duration,
    /// Longest epoch of a guest that works.
    pub epoch_max: Duration,
    /// Longest epoch of a guest that does next to nothing: nobody has heard of what it would lose.
    pub epoch_quiet: Duration,
    /// Shortest epoch, when output waits.
    pub epoch_min: Duration,
    /// Thousandths of the guest's time that cuts for the sake of waiting output may take from it: what a cut costs decides how
    /// soon the next one may follow.
    pub cut_share_pm: u32,
    /// Sealed epochs that may be unacknowledged before the next cut waits.
    pub epochs_in_flight: u64,
    /// How long the guest may stand still for a planned handover.
    pub hand_over_patience: Duration,
    /// An unanswered swap is sent again after this long.
    pub arbiter_retry: Duration,
    /// The record is read this often while something is wrong.
    pub record_poll: Duration,
}

impl Default for PrimaryConfig {
    fn default() -> Self {
        let patient = DetectorConfig { floor: Duration::from_millis(300), ..DetectorConfig::default() };
        Self {
            heartbeat_every: Duration::from_millis(10),
            detector: patient,
            fresh: Duration::from_millis(50),
            epoch_max: Duration::from_millis(25),
            epoch_quiet: Duration::from_secs(2),
            epoch_min: Duration::from_micros(500),
            cut_share_pm: 100,
            epochs_in_flight: 2,
            hand_over_patience: Duration::from_secs(1),
            arbiter_retry: Duration::from_millis(100),
            record_poll: Duration::from_millis(100),
        }
    }
}

/// What happens to the active side.
#[derive(Clone, Debug)]
pub enum Event {
    /// A handshake with a replica succeeded; it holds `staged` from an earlier handshake with this very process.
    Joined {
        /// The replica.
        member: Member,
        /// Its newest whole epoch.
        staged: Option<EpochId>,
    },
    /// A heartbeat arrived.
    Heartbeat(Heartbeat),
    /// A peer says there is a newer generation.
    Deposed(Generation),
    /// The ordered cut is done: the epoch's content is fixed and on its way.
    Sealed(EpochId),
    /// The epoch just sealed is not sent to this replica, which has enough to do with what it was sent before.
    Spared(Member, EpochId),
    /// With this epoch, a replica has been sent everything it lacked when it joined; of the newest handshake.
    Filled(Member, EpochId),
    /// How the ordered cut went; comes before `Sealed`.
    CutDone(CutDone),
    /// The open epoch has more pages than an epoch should.
    PagesPending,
    /// The ordered cut failed; its pages were returned and the epoch goes on.
    CutFailed,
    /// The counter of the epoch loop.
    Progress(u64),
    /// Whether output made in the open epoch waits at the gate.
    OutputPending(bool),
    /// The arbiter answered.
    Arbiter(Reply),
    /// The operator wants this replica no more.
    Dismiss(Member),
    /// The operator wants the guest to go on at this replica, or at any that is in sync.
    HandOver(Option<Member>),
    /// Epochs are to end at this pace; once the record says so.
    SetPace(Pace),
    /// Output is to wait for its epoch, or not; once the record says so.
    SetMode(Mode),
    /// The VM is to end here and nowhere else go on: take every replica off the record. Stop the guest first.
    Retire,
    /// Time has passed. Hand in everything that has arrived first.
    Tick,
}

/// How a cut went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutDone {
    /// What it took from the guest.
    pub cost: Duration,
    /// The guest did next to nothing in the epoch, and said nothing.
    pub quiet: bool,
}

/// What the active side wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the open epoch: stop the guest, take its pages and state, go on. Answer with `Sealed` or `CutFailed`.
    Cut(EpochId),
    /// Send a heartbeat.
    Heartbeat(Member, Heartbeat),
    /// Tell a stale process that it is deposed.
    TellDeposed(Member, Generation, EpochId),
    /// Tell a replica that the guest stands at the end of this epoch, for it to take over.
    Yield(Member, Yield),
    /// The guest was not handed over, and goes on here.
    NotHandedOver(NotHandedOver),
    /// Let out what waits of the epochs up to this one.
    Release(EpochId),
    /// Switch the gate for output made from now on.
    Gate(GateMode),
    /// Let output leave that nobody has committed, until this time and not longer; it replaces what was said before. Only with
    /// the gate leased.
    Lease(Time),
    /// Ask the arbiter.
    Arbiter(Request),
    /// Begin sending epochs to this replica, which has nothing: it is owed every page.
    Seed(Member),
    /// Go on sending to this replica, which kept epochs up to this one: later ones are aborted.
    Resend(Member, EpochId),
    /// Stop sending to this replica and close the connection; a process that holds epochs of ours must start again before
    /// it can be our replica once more.
    Drop(Member),
    /// Stop the guest until `RunGuest`: the policy forbids to run unprotected, or it is being handed over.
    PauseGuest,
    /// Let the guest go on.
    RunGuest,
    /// Stop the guest for good and discard what waits: somebody else is the active now.
    Stop(StopReason),
    /// After `Retire`: the record lists nobody, this process may end.
    Retired,
    /// The protection changed.
    Status(Protection),
}

/// Why a guest must stop for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// A replica took over.
    #[error("{by} has taken over as the active of generation {generation}")]
    Deposed {
        /// The generation now.
        generation: Generation,
        /// The active now.
        by: Member,
    },
    /// A replica took over because it was asked to.
    #[error("handed over to {to}, the active of generation {generation}")]
    HandedOver {
        /// The generation now.
        generation: Generation,
        /// The active now.
        to: Member,
    },
    /// The record is gone.
    #[error("the arbiter has no record of this VM any more")]
    RecordGone,
}

/// How well the VM is protected, and if not, why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// No replica is connected.
    NoReplica,
    /// A replica is receiving its first copy.
    Seeding,
    /// A replica holds everything and is being listed.
    Joining,
    /// This many replicas are in sync.
    Protected(usize),
    /// A listed replica is silent; output waits.
    ReplicaSilent(Suspicion),
    /// The guest stands still while a replica in sync takes over.
    HandingOver,
    /// No replica is in sync and the policy is to halt.
    Halted,
    /// The guest was stopped for good.
    Stopped,
}

/// The active side's state.
#[derive(Debug)]
pub struct Primary {
    cfg: PrimaryConfig,
    me: Member,
    record: Record,
    peers: Vec<Peer>,
    /// The epoch the guest runs in.
    open: EpochId,
    /// All output of epochs up to this one has left.
    released: EpochId,
    /// The epoch in which the gate last began to hold: output made in it before that has left too.
    held_from: EpochId,
    gate: GateMode,
    output_pending: bool,
    cutting: bool,
    last_cut: Time,
    /// What a cut takes from the guest, about.
    cut_cost: Duration,
    /// Longest epoch while no output waits.
    longest: Duration,
    paused: bool,
    stopped: bool,
    retiring: bool,
    hand_over: Option<HandOver>,
    /// Not yet in the record.
    wanted_pace: Option<Pace>,
    wanted_mode: Option<Mode>,
    begun: Begun,
    /// When the lease ends, as last said.
    leased_now: Time,
    /// The latest end of a lease ever said.
    leased_until: Time,
    /// Echoes of stamps up to this one give no lease: with them in hand, a replica may be taking over as it was asked to.
    echoes_from: Time,
    doubt: bool,
    proposal: Option<Proposal>,
    ops: u64,
    progress: u64,
    next_heartbeat: Time,
    next_poll: Time,
    status: Protection,
}

impl Primary {
    /// The active of a record it has just made or won; the guest is about to run in the epoch after `resumed_from`. Hand in a
    /// `Tick` and carry out what comes of it before it runs: under `Halt` it must wait for a replica.
    #[must_use]
    pub fn new(
        cfg: PrimaryConfig,
        me: Member,
        record: Record,
        resumed_from: EpochId,
        ops: u64,
        now: Time,
    ) -> Self {
        let mut primary = Self {
            cfg,
            me,
            record,
            peers: Vec::new(),
            open: resumed_from.next(),
            released: resumed_from,
            held_from: resumed_from,
            gate: GateMode::Open,
            output_pending: false,
            cutting: false,
            last_cut: now,
            cut_cost: Duration::ZERO,
            longest: cfg.epoch_max,
            paused: false,
            stopped: false,
            retiring: false,
            hand_over: None,
            wanted_pace: None,
            wanted_mode: None,
            begun: Begun::new(resumed_from.next(), now),
            leased_now: Time(0),
            leased_until: Time(0),
            echoes_from: Time(0),
            doubt: false,
            proposal: None,
            ops,
            progress: 0,
            next_heartbeat: now,
            next_poll: now,
            status: Protection::NoReplica,
        };
        primary.keep_pace();
        primary
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &VmId {
        &self.record.vm
    }

    /// The record as last seen.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The epoch the guest runs in.
    #[must_use]
    pub fn open_epoch(&self) -> EpochId {
        self.open
    }

    /// How often epochs end now.
    #[must_use]
    pub fn pace(&self) -> Option<Pace> {
        let PrimaryConfig { epoch_max, epoch_min, cut_share_pm, .. } = self.cfg;
        Pace::new(epoch_max, epoch_min, cut_share_pm).ok()
    }

    /// As the record says, if it says something.
    fn keep_pace(&mut self) {
        if let Some(pace) = self.record.pace
            && self.pace() != Some(pace)
        {
            self.cfg.epoch_max = pace.epoch_max();
            self.cfg.epoch_min = pace.epoch_min();
            self.cfg.cut_share_pm = pace.cut_share_pm();
            self.longest = pace.epoch_max();
        }
    }

    /// The newest epoch whose output has left.
    #[must_use]
    pub fn released(&self) -> EpochId {
        self.released
    }

    /// The protection now.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.status
    }

    /// Takes an event and appends what is to be done.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        if self.stopped {
            return;
        }
        match event {
            Event::Joined { member, staged } => self.joined(now, member, staged, out),
            Event::Heartbeat(hb) => self.heard(now, &hb, out),
            Event::Deposed(generation) => self.doubt |= generation > self.record.generation,
            Event::Sealed(epoch) => self.sealed(epoch),
            Event::Spared(member, epoch) => self.spared(member, epoch),
            Event::Filled(member, epoch) => self.filled(member, epoch),
            Event::CutDone(CutDone { cost, quiet }) => {
                self.cut_cost = (self.cut_cost * 3 + cost) / 4;
                let stretched = (self.longest * 2).min(self.cfg.epoch_quiet.max(self.cfg.epoch_max));
                self.longest = if quiet { stretched } else { self.cfg.epoch_max };
            }
            Event::PagesPending => self.longest = self.cfg.epoch_max,
            Event::CutFailed => {
                self.cutting = false;
                self.hand_over.iter_mut().for_each(HandOver::cut_failed);
            }
            Event::Progress(count) => self.progress = count,
            Event::OutputPending(pending) => self.output_pending = pending,
            Event::Arbiter(reply) => self.answered(&reply, out),
            Event::Dismiss(member) => self.dismiss(member, out),
            Event::HandOver(to) => {
                if let Err(why) = self.begin_hand_over(now, to) {
                    out.push(Action::NotHandedOver(why));
                }
            }
            Event::SetPace(pace) => self.wanted_pace = Some(pace),
            Event::SetMode(mode) => self.wanted_mode = Some(mode),
            Event::Retire => self.retiring = true,
            Event::Tick => self.tick(now, out),
        }
        if !self.stopped {
            self.advance(now, out);
        }
    }

    fn joined(&mut self, now: Time, member: Member, staged: Option<EpochId>, out: &mut Vec<Action>) {
        self.longest = self.cfg.epoch_max;
        let fresh_peer = self.new_peer(now, member);
        let room = self.peers.len() < limits::PEERS;
        let known = self.peers.iter_mut().find(|p| p.member == member);
        match (known, staged) {
            (Some(peer), Some(kept)) if peer.standing != Standing::Leaving => {
                peer.acked = peer.acked.max(Some(kept));
                // What it lacked and did not get is on its way anew.
                peer.filled = peer.filled.filter(|filled| *filled <= kept);
                // What was sealed and not kept leaves with the next cut, which must not wait for it.
                peer.void = self.open.prev();
                out.push(Action::Resend(member, kept));
            }
            (Some(peer), None) if peer.standing == Standing::Seeding => {
                peer.first = self.open;
                (peer.acked, peer.filled) = (None, None);
                out.push(Action::Seed(member));
            }
            (Some(_), _) => {}
            (None, None) if room => {
                self.peers.push(fresh_peer);
                self.next_heartbeat = now;
                out.push(Action::Seed(member));
            }
            // It was dropped: what it holds is a past nobody goes on from, and a seed cannot follow it.
            (None, Some(_)) => out.push(Action::Drop(member)),
            (None, None) => {}
        }
    }

    /// From `Listing` on the record may list it, so only the record's word ends the waiting for it.
    fn dismiss(&mut self, member: Member, out: &mut Vec<Action>) {
        let Some(peer) = self.peers.iter_mut().find(|p| p.member == member) else { return };
        peer.dismissed = true;
        if matches!(peer.standing, Standing::Seeding | Standing::Joining { .. }) {
            self.drop_peer(member, out);
        }
    }

    fn begin_hand_over(&mut self, now: Time, to: Option<Member>) -> Result<(), NotHandedOver> {
        if self.hand_over.is_some() {
            return Err(NotHandedOver::UnderWay);
        }
        if self.retiring {
            return Err(NotHandedOver::Ending);
        }
        let any = self.peers.iter().find(|p| p.may_be_yielded_to()).map(|p| p.member);
        let to = to.or(any).ok_or(NotHandedOver::NoReplica)?;
        if !self.can_yield_to(to) {
            return Err(NotHandedOver::NotInSync(to.node));
        }
        self.hand_over = Some(HandOver::begin(to, now, self.cfg.hand_over_patience));
        Ok(())
    }

    fn can_yield_to(&self, member: Member) -> bool {
        self.peers.iter().any(|p| p.member == member && p.may_be_yielded_to())
    }

    /// Yields when everything has left, or gives up.
    fn go_on_handing_over(&mut self, now: Time, out: &mut Vec<Action>) {
        let Some(hand_over) = self.hand_over else { return };
        if let Some(why) = hand_over.failed(now, self.can_yield_to(hand_over.to)) {
            self.hand_over = None;
            self.echoes_from = now;
            out.push(Action::NotHandedOver(why));
        } else if let Some(last) = self.hand_over.as_mut().and_then(|h| h.settled(self.released)) {
            self.next_poll = now + self.cfg.heartbeat_every;
            out.push(self.yielding(hand_over.to, last, now));
        }
    }

    fn yielding(&self, to: Member, epoch: EpochId, now: Time) -> Action {
        Action::Yield(to, Yield { generation: self.record.generation, epoch, sent_at: now })
    }

    fn new_peer(&self, now: Time, member: Member) -> Peer {
        Peer {
            member,
            standing: Standing::Seeding,
            dismissed: false,
            // A cut under way was ordered without this replica.
            first: if self.cutting { self.open.next() } else { self.open },
            acked: None,
            filled: None,
            void: EpochId(0),
            echo: None,
            echo_heard_at: now,
            round_trip: RoundTrip::default(),
            joined_at: now,
            stamp: None,
            detector: Detector::new(self.cfg.detector, self.cfg.heartbeat_every, now),
        }
    }

    fn heard(&mut self, now: Time, hb: &Heartbeat, out: &mut Vec<Action>) {
        self.doubt |= hb.generation > self.record.generation;
        if let Some(peer) = self.peers.iter_mut().find(|p| p.member == hb.from) {
            peer.detector.heard(now, hb.echo, hb.progress);
            peer.acked = peer.acked.max(hb.epoch);
            // A stamp says something about the round trip when it comes back for the first time, unless it has waited: with a
            // replica that was connected before, or in a socket of ours while this process was stopped.
            let new = hb.echo.filter(|echo| *echo >= peer.joined_at && peer.echo < Some(*echo));
            if peer.echo < hb.echo {
                (peer.echo, peer.echo_heard_at) = (hb.echo, now);
            }
            peer.stamp = peer.stamp.max(Some(hb.sent_at));
            if let (Some(echo), true) = (new, peer.detector.is_running(now)) {
                peer.round_trip.add(now.since(echo));
            }
        } else if hb.generation < self.record.generation {
            out.push(Action::TellDeposed(hb.from, self.record.generation, self.released));
        }
    }

    fn sealed(&mut self, epoch: EpochId) {
        debug_assert_eq!(epoch, self.open, "sealed an epoch that was not ordered");
        self.cutting = false;
        self.open = epoch.next();
        if self.gate == GateMode::Open {
            self.released = epoch;
            self.begun.committed(epoch);
        }
    }

    /// Whoever must be waited for is waited for all the same: it is sent what it lacks in a later epoch.
    fn spared(&mut self, member: Member, epoch: EpochId) {
        let seeding = |p: &&mut Peer| p.member == member && p.standing == Standing::Seeding;
        if let Some(peer) = self.peers.iter_mut().find(seeding) {
            peer.void = peer.void.max(epoch);
        }
    }

    fn filled(&mut self, member: Member, epoch: EpochId) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.member == member) {
            peer.filled = Some(epoch);
        }
    }

    fn answered(&mut self, reply: &Reply, out: &mut Vec<Action>) {
        if let Some(proposal) = self.proposal.take() {
            match proposal.settle(reply) {
                Settled::Pending => self.proposal = Some(proposal),
                Settled::Applied(record) => self.applied(record, &proposal.swap().change, out),
                Settled::Failed(Some(record)) => self.failed(record, out),
                Settled::Failed(None) => self.stop(StopReason::RecordGone, out),
            }
        }
        if let Some(record) = reply.record() {
            self.see(record, out);
        }
    }

    /// Takes note of a record the arbiter showed; a later generation stops the guest.
    fn see(&mut self, record: &Record, out: &mut Vec<Action>) {
        if record.active != self.me && record.generation >= self.record.generation {
            let (generation, by) = (record.generation, record.active);
            let asked = self.hand_over.is_some_and(|h| h.to == by && h.yields().is_some());
            let reason = if asked {
                StopReason::HandedOver { generation, to: by }
            } else {
                StopReason::Deposed { generation, by }
            };
            self.stop(reason, out);
        } else if record.version >= self.record.version {
            self.record = record.clone();
            self.doubt = false;
            self.keep_pace();
        }
    }

    fn applied(&mut self, record: Record, change: &Change, out: &mut Vec<Action>) {
        match change {
            Change::List { member, .. } => self.stand(*member, Standing::InSync),
            Change::Unlist { member } => self.drop_peer(*member, out),
            Change::SetPace { pace } => self.wanted_pace = self.wanted_pace.filter(|wanted| wanted != pace),
            Change::SetMode { mode } => self.wanted_mode = self.wanted_mode.filter(|wanted| wanted != mode),
            Change::Create { .. } | Change::TakeOver { .. } => {}
        }
        if record.version >= self.record.version {
            self.record = record;
            self.keep_pace();
        }
    }

    /// A swap lost against another change: if we are still the active, it is proposed again on the new version.
    fn failed(&mut self, record: Record, out: &mut Vec<Action>) {
        self.see(&record, out);
        let need = self.open;
        for peer in &mut self.peers {
            peer.standing = match peer.standing {
                Standing::Listing => Standing::Joining { need },
                Standing::Leaving => Standing::Lost,
                other => other,
            };
        }
    }

    fn stand(&mut self, member: Member, standing: Standing) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.member == member) {
            peer.standing = standing;
        }
    }

    fn drop_peer(&mut self, member: Member, out: &mut Vec<Action>) {
        self.peers.retain(|p| p.member != member);
        out.push(Action::Drop(member));
    }

    fn stop(&mut self, reason: StopReason, out: &mut Vec<Action>) {
        if !self.stopped {
            self.stopped = true;
            self.status = Protection::Stopped;
            out.push(Action::Stop(reason));
            out.push(Action::Status(Protection::Stopped));
        }
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Action>) {
        self.peers.iter_mut().for_each(|p| p.detector.tick(now));
        self.judge_silence(out);
        if now >= self.next_heartbeat {
            // Nobody listens: only the record is looked at.
            let alone = self.peers.is_empty();
            self.next_heartbeat = now + if alone { self.cfg.record_poll } else { self.cfg.heartbeat_every };
            self.send_heartbeats(now, out);
            if let Some((to, last)) = self.hand_over.and_then(|h| Some((h.to, h.yields()?))) {
                out.push(self.yielding(to, last, now));
            }
        }
        self.keep_asking(now, out);
        let due = self.next_tick();
        self.peers.iter_mut().for_each(|p| p.detector.expect_tick(due));
    }

    fn judge_silence(&mut self, out: &mut Vec<Action>) {
        let mut dropped = Vec::new();
        for peer in &mut self.peers {
            let silent = peer.detector.suspicion().is_some();
            match peer.standing {
                // Dismissed while its listing was under way, and the listing was refused.
                Standing::Joining { .. } if peer.dismissed => dropped.push(peer.member),
                Standing::Seeding | Standing::Joining { .. } if silent => dropped.push(peer.member),
                Standing::InSync if silent && sabotaged(Sabotage::DegradeWithoutArbiter) => {
                    dropped.push(peer.member);
                }
                Standing::InSync if silent => peer.standing = Standing::Lost,
                Standing::Lost if !silent => {
                    // Cuts went on without it, and a driver may have spared it their epochs.
                    peer.void = self.open.prev();
                    peer.standing = Standing::InSync;
                }
                _ => {}
            }
        }
        for member in dropped {
            self.drop_peer(member, out);
            if sabotaged(Sabotage::DegradeWithoutArbiter) {
                self.record.in_sync.retain(|l| l.member != member);
            }
        }
    }

    fn send_heartbeats(&self, now: Time, out: &mut Vec<Action>) {
        for peer in &self.peers {
            let heartbeat = Heartbeat {
                from: self.me,
                generation: self.record.generation,
                sent_at: now,
                echo: peer.stamp,
                progress: self.progress,
                epoch: Some(self.released),
            };
            out.push(Action::Heartbeat(peer.member, heartbeat));
        }
    }

    /// Repeats an unanswered swap, and reads the record while a replica is silent or a newer generation is rumoured:
    /// the silent replica may have taken over.
    fn keep_asking(&mut self, now: Time, out: &mut Vec<Action>) {
        if let Some(proposal) = &mut self.proposal {
            if proposal.given_up(now, self.cfg.arbiter_retry) {
                let record = self.record.clone();
                self.proposal = None;
                self.failed(record, out);
            } else if proposal.overdue(now, self.cfg.arbiter_retry) {
                out.push(Action::Arbiter(proposal.request()));
            }
        }
        let yields = self.hand_over.is_some_and(|h| h.yields().is_some());
        let worried = self.doubt || yields || self.peers.iter().any(|p| !p.standing.is_live());
        if worried && now >= self.next_poll {
            self.next_poll = now + if yields { self.cfg.heartbeat_every } else { self.cfg.record_poll };
            out.push(Action::Arbiter(Request::Read));
        }
    }

    /// Draws every consequence of the present state.
    fn advance(&mut self, now: Time, out: &mut Vec<Action>) {
        self.promote_seeded(out);
        self.release(now, out);
        self.go_on_handing_over(now, out);
        self.lead(now, out);
        self.propose(now, out);
        self.obey_policy(out);
        if self.retiring {
            self.retire_if_alone(out);
        } else {
            self.cut_if_due(now, out);
        }
        self.report(out);
    }

    fn retire_if_alone(&mut self, out: &mut Vec<Action>) {
        if self.record.in_sync.is_empty() && self.proposal.is_none() {
            self.stopped = true;
            out.push(Action::Retired);
        }
    }

    /// A replica that holds all it lacked becomes required. Until it is listed, the gate holds: what leaves now must not be
    /// lost when it is listed later.
    fn promote_seeded(&mut self, out: &mut Vec<Action>) {
        let mut hold = false;
        let some_left = self.some_left();
        for peer in &mut self.peers {
            if peer.standing == Standing::Seeding && peer.is_filled() {
                // While it seeded, nobody waited for it, and a driver may have spared it the epochs in between.
                peer.void = self.open.prev();
                peer.standing = Standing::Joining { need: some_left };
                hold = true;
            }
        }
        if hold && self.gate == GateMode::Open {
            self.hold_gate(out);
        }
    }

    /// The newest epoch of which any output may have left: with the gate open, that is the open one.
    fn some_left(&self) -> EpochId {
        match self.gate {
            _ if sabotaged(Sabotage::ListedWithoutHold) => self.released,
            GateMode::Open | GateMode::Leased => self.open,
            GateMode::Hold => self.released.max(self.held_from),
        }
    }

    fn hold_gate(&mut self, out: &mut Vec<Action>) {
        self.gate = GateMode::Hold;
        self.held_from = self.open;
        out.push(Action::Gate(GateMode::Hold));
    }

    fn release(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.gate == GateMode::Open || self.doubt && !sabotaged(Sabotage::StaleAckHonoured) {
            return;
        }
        // Not on the word of a replica that is not listed yet, or perhaps no more: it could not go on from what leaves.
        if self.must_halt() {
            return;
        }
        let mut required = self.peers.iter().filter(|p| p.standing.is_required()).peekable();
        if required.peek().is_none() {
            if self.record.in_sync.is_empty() && self.record.policy == LossPolicy::Degrade {
                self.open_gate(out);
            }
            return;
        }
        let fresh = self.cfg.fresh;
        let (mut held_by_all, mut all_fresh) = (self.open.prev(), true);
        for peer in required {
            held_by_all = held_by_all.min(peer.acked_or_before());
            all_fresh &= peer.is_fresh(now, fresh);
        }
        if sabotaged(Sabotage::ReleaseBeforeCommit) {
            (held_by_all, all_fresh) = (self.open.prev(), true);
        }
        if held_by_all > self.released && all_fresh {
            self.released = held_by_all;
            self.begun.committed(held_by_all);
            out.push(Action::Release(held_by_all));
        }
    }

    /// Nobody is required and the record lists nobody: run unprotected.
    fn open_gate(&mut self, out: &mut Vec<Action>) {
        self.released = self.open.prev();
        self.begun.committed(self.released);
        self.gate = GateMode::Open;
        out.push(Action::Release(self.open));
        out.push(Action::Gate(GateMode::Open));
    }

    fn propose(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.proposal.is_some() {
            return;
        }
        let change = if let Some((member, change)) = self.next_change() {
            let leaving = matches!(change, Change::Unlist { .. });
            self.stand(member, if leaving { Standing::Leaving } else { Standing::Listing });
            change
        } else if let Some(pace) = self.wanted_pace {
            Change::SetPace { pace }
        } else if let Some(mode) =
            self.wanted_mode.filter(|_| self.changes_mode() && self.may_change_mode(now))
        {
            Change::SetMode { mode }
        } else {
            return;
        };
        self.ops += 1;
        let swap = Swap {
            vm: self.record.vm.clone(),
            expected_version: self.record.version,
            proposer: self.me,
            op: OpId { incarnation: self.me.incarnation, count: self.ops },
            change,
        };
        let proposal = Proposal::new(swap, now);
        out.push(Action::Arbiter(proposal.request()));
        self.proposal = Some(proposal);
    }

    fn next_change(&self) -> Option<(Member, Change)> {
        let may_unlist = self.record.policy == LossPolicy::Degrade
            || self.peers.iter().any(|p| p.standing == Standing::InSync);
        self.peers.iter().find_map(|p| match p.standing {
            Standing::Joining { need } if p.holds(need) && !self.retiring && !p.dismissed => {
                Some((p.member, Change::List { member: p.member, since: p.acked? }))
            }
            Standing::InSync if self.retiring || p.dismissed => {
                Some((p.member, Change::Unlist { member: p.member }))
            }
            Standing::Lost if may_unlist || self.retiring || p.dismissed => {
                Some((p.member, Change::Unlist { member: p.member }))
            }
            _ => None,
        })
    }

    /// Under `Halt` the guest runs only while somebody is in sync: not after a takeover and not at the first boot either.
    fn obey_policy(&mut self, out: &mut Vec<Action>) {
        let halt = self.must_halt();
        let pause = halt || self.hand_over.is_some();
        if halt && self.gate == GateMode::Open {
            self.hold_gate(out);
        }
        if pause != self.paused {
            self.paused = pause;
            out.push(if pause { Action::PauseGuest } else { Action::RunGuest });
        }
    }

    fn must_halt(&self) -> bool {
        let alone = !self.peers.iter().any(|p| p.standing == Standing::InSync);
        alone && self.record.policy == LossPolicy::Halt
    }

    fn cut_if_due(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.next_cut().is_some_and(|at| now >= at) {
            self.cutting = true;
            self.hand_over.iter_mut().filter(|h| h.wants_cut()).for_each(|h| h.ends_with(self.open));
            self.output_pending = false;
            self.last_cut = now;
            self.begun.begin(self.open.next(), now);
            out.push(Action::Cut(self.open));
        }
    }

    /// When a `Tick` is due if nothing happens before.
    #[must_use]
    pub fn next_tick(&self) -> Time {
        let suspect = self.peers.iter().filter_map(|p| p.detector.suspect_at());
        let hand_over = self.hand_over.map(|h| h.due());
        suspect.chain(self.next_cut()).chain(hand_over).fold(self.next_heartbeat, Time::min)
    }

    /// When the open epoch is to end if nothing happens before; none while nobody waits for it, or something has to happen
    /// first. Hand in a `Tick` then.
    #[must_use]
    pub fn next_cut(&self) -> Option<Time> {
        let in_flight = self.open.prev().0.saturating_sub(self.oldest_awaited()?.0);
        if self.stopped || self.retiring || self.cutting || in_flight >= self.cfg.epochs_in_flight {
            return None;
        }
        match self.hand_over {
            Some(hand_over) if hand_over.wants_cut() => return Some(self.last_cut),
            // Its guest stands still, and whoever takes over needs no epoch more.
            Some(_) => return None,
            None => {}
        }
        let shortest = self.cfg.epoch_min.max(self.cut_cost * 1000 / self.cfg.cut_share_pm.max(1));
        let longest = match self.record.mode {
            Mode::Sync => self.longest,
            // Two of them must fit: one on its way and the open one.
            Mode::Async(lease) => self.longest.min(lease.exposure() / 3),
        };
        let length = if self.output_pending { shortest.min(self.cfg.epoch_max) } else { longest };
        Some(self.last_cut + length)
    }

    /// The newest epoch that nobody still has on its way to him whom the pace must follow: the replicas output waits for,
    /// or while there are none, those being seeded.
    fn oldest_awaited(&self) -> Option<EpochId> {
        let live = || self.peers.iter().filter(|p| p.sets_pace());
        let required = live().filter(|p| p.standing.is_required()).map(Peer::settled).min();
        required.or_else(|| live().map(Peer::settled).min())
    }

    fn report(&mut self, out: &mut Vec<Action>) {
        let status = self.judge_protection();
        if status != self.status {
            self.status = status;
            out.push(Action::Status(status));
        }
    }

    fn judge_protection(&self) -> Protection {
        let in_sync = self.peers.iter().filter(|p| p.standing == Standing::InSync).count();
        let lost = self.peers.iter().find(|p| !p.standing.is_live());
        if self.hand_over.is_some() {
            Protection::HandingOver
        } else if self.paused {
            Protection::Halted
        } else if let Some(peer) = lost {
            Protection::ReplicaSilent(peer.detector.suspicion().unwrap_or(Suspicion::Silent))
        } else if in_sync > 0 {
            Protection::Protected(in_sync)
        } else if self.peers.iter().any(|p| p.standing.is_required()) {
            Protection::Joining
        } else if self.peers.is_empty() {
            Protection::NoReplica
        } else {
            Protection::Seeding
        }
    }
}

#[cfg(test)]
mod tests;
