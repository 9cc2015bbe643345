//! The passive side: acknowledging whole epochs, and taking over.
//!
//! ```text
//!              silence, record lists me, arbiter answers         swap applied
//!   Following ─────────────────────────────────────────> Taking ──────────────> Promoted
//!       ^  │                                              │  │
//!       │  │ the record dropped me, or has another         │  │ swap failed and the record dropped me
//!       │  └──────────────> Expelled <────────────────────────┘
//!       └──── swap failed, still listed ──────────────────┘
//! ```
//! In `Taking` the replica is silent: from the moment its swap may be applied it must not acknowledge anything, or the old
//! active could release output beyond the epoch the new one resumes from. It speaks again only when the swap is known to
//! have failed. It does not enter `Taking` while the arbiter is out of reach: silence without a decision would only stop
//! a healthy guest.

use std::time::Duration;

use crate::detector::{Detector, DetectorConfig, Suspicion};
use crate::ids::{EpochId, Generation, Member, OpId, VmId};
use crate::message::{Heartbeat, Yield};
use crate::mode::{Lease, Mode};
use crate::record::{Change, Record, Swap};
use crate::sabotage::{Sabotage, sabotaged};
use crate::settle::{Proposal, Reply, Request, Settled};
use crate::time::Time;

/// The passive side's timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// Interval of heartbeats.
    pub heartbeat_every: Duration,
    /// How patient to be with the active.
    pub detector: DetectorConfig,
    /// An unanswered swap is sent again after this long.
    pub arbiter_retry: Duration,
    /// The record is read this often, so that a takeover needs no extra round trip.
    pub record_poll: Duration,
    /// The arbiter counts as reachable when it has answered within this time.
    pub arbiter_fresh: Duration,
    /// A replica that is not listed starts again when it has heard nothing for this long.
    pub abandoned_after: Duration,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self {
            heartbeat_every: Duration::from_millis(10),
            detector: DetectorConfig::default(),
            arbiter_retry: Duration::from_millis(100),
            record_poll: Duration::from_millis(200),
            arbiter_fresh: Duration::from_millis(700),
            abandoned_after: Duration::from_secs(2),
        }
    }
}

/// What happens to the passive side.
#[derive(Clone, Debug)]
pub enum Event {
    /// A heartbeat arrived.
    Heartbeat(Heartbeat),
    /// An epoch is whole, verified and staged.
    Staged(EpochId),
    /// The active has stopped its guest for this replica to go on with it.
    Yielded(Yield),
    /// Counter of the staging loop.
    Progress(u64),
    /// The arbiter answered.
    Arbiter(Reply),
    /// Time has passed. Hand in everything that has arrived first.
    Tick,
}

/// What the passive side wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a heartbeat to the active.
    Heartbeat(Heartbeat),
    /// Ask the arbiter.
    Arbiter(Request),
    /// The active is suspected from now on; for timelines and logs.
    Suspect(Suspicion),
    /// The swap is on its way; for timelines and logs.
    Taking,
    /// Resume the guest from the end of this epoch as the active of this record.
    Promote(EpochId, Record),
    /// This process may not take over any more: start again as a new incarnation.
    Expelled(Expulsion),
}

/// Why a replica is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Expulsion {
    /// The active runs on without it.
    #[error("the active removed this replica from the record")]
    Unlisted,
    /// Nothing was heard for long, and the record does not list this process: the active has given up seeding it.
    #[error("the active went away before this replica was listed")]
    Abandoned,
    /// Another process is the active now.
    #[error("{by} is the active of generation {generation} now")]
    OtherActive {
        /// The generation now.
        generation: Generation,
        /// The active now.
        by: Member,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Following,
    Taking,
    Promoted,
    Expelled,
}

/// The passive side's state.
#[derive(Debug)]
pub struct Replica {
    cfg: ReplicaConfig,
    vm: VmId,
    me: Member,
    active: Member,
    generation: Generation,
    phase: Phase,
    staged: Option<EpochId>,
    record: Option<Record>,
    answered_at: Option<Time>,
    was_listed: bool,
    detector: Detector,
    suspected: bool,
    stamp: Option<Time>,
    /// When the stamp came.
    stamp_at: Time,
    proposal: Option<Proposal>,
    ops: u64,
    progress: u64,
    next_heartbeat: Time,
    next_poll: Time,
}

impl Replica {
    /// A replica that has just accepted the offer of `active`.
    #[must_use]
    pub fn new(
        cfg: ReplicaConfig,
        vm: VmId,
        me: Member,
        (active, generation): (Member, Generation),
        now: Time,
    ) -> Self {
        Self {
            cfg,
            vm,
            me,
            active,
            generation,
            phase: Phase::Following,
            staged: None,
            record: None,
            answered_at: None,
            was_listed: false,
            detector: Detector::new(cfg.detector, cfg.heartbeat_every, now),
            suspected: false,
            stamp: None,
            stamp_at: now,
            proposal: None,
            ops: 0,
            progress: 0,
            next_heartbeat: now,
            next_poll: now,
        }
    }

    /// The newest whole epoch.
    #[must_use]
    pub fn staged(&self) -> Option<EpochId> {
        self.staged
    }

    /// Whether epochs that arrive may still be staged: not once the takeover epoch is fixed.
    #[must_use]
    pub fn may_stage(&self) -> bool {
        self.phase == Phase::Following
            || self.phase == Phase::Taking && sabotaged(Sabotage::AcksWhileTakingOver)
    }

    /// Whether the record as last read lists this process.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.record.as_ref().is_some_and(|r| r.lists(self.me))
    }

    /// Proposals made so far, so that a primary that grows out of this replica goes on counting.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.ops
    }

    /// The detector, for status displays.
    #[must_use]
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// When a `Tick` is due if nothing happens before.
    #[must_use]
    pub fn next_tick(&self) -> Time {
        let ahead = |at: &Time| *at > self.detector.ticked_at();
        let lease = self.outwaited_at().filter(ahead).filter(|_| self.waits_to_take());
        self.detector.suspect_at().into_iter().chain(lease).fold(self.next_heartbeat, Time::min)
    }

    /// Takes an event and appends what is to be done.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Promoted | Phase::Expelled) {
            return;
        }
        match event {
            Event::Heartbeat(hb) => self.heard(now, &hb),
            Event::Staged(epoch) => self.acknowledge(now, epoch, out),
            Event::Yielded(said) => self.yielded(now, said, out),
            Event::Progress(count) => self.progress = count,
            Event::Arbiter(reply) => self.answered(now, &reply, out),
            Event::Tick => self.tick(now, out),
        }
    }

    fn heard(&mut self, now: Time, hb: &Heartbeat) {
        if hb.from == self.active && hb.generation == self.generation {
            self.detector.heard(now, hb.echo, hb.progress);
            if self.stamp >= Some(hb.sent_at) {
                return;
            }
            // What is not echoed gives no lease: it can end.
            if !(self.waits_to_take() && self.lease_given().is_some()) {
                (self.stamp, self.stamp_at) = (Some(hb.sent_at), now);
            } else if sabotaged(Sabotage::LeaseRenewedInSuspicion) {
                self.stamp = Some(hb.sent_at);
            }
        }
    }

    /// An acknowledgement goes out at once; heartbeats repeat it.
    fn acknowledge(&mut self, now: Time, epoch: EpochId, out: &mut Vec<Action>) {
        debug_assert!(self.may_stage(), "staged {epoch} after the takeover epoch was fixed");
        self.staged = self.staged.max(Some(epoch));
        self.speak(now, out);
    }

    fn speak(&self, now: Time, out: &mut Vec<Action>) {
        if !self.may_stage() {
            return;
        }
        out.push(Action::Heartbeat(Heartbeat {
            from: self.me,
            generation: self.generation,
            sent_at: now,
            echo: self.stamp,
            progress: self.progress,
            epoch: self.staged,
        }));
    }

    fn answered(&mut self, now: Time, reply: &Reply, out: &mut Vec<Action>) {
        self.answered_at = Some(now);
        if let Some(record) = reply.record()
            && self.record.as_ref().is_none_or(|known| record.version >= known.version)
        {
            self.record = Some(record.clone());
        }
        if let Some(proposal) = self.proposal.take() {
            match proposal.settle(reply) {
                Settled::Pending => self.proposal = Some(proposal),
                Settled::Applied(record) => return self.promote(record, out),
                Settled::Failed(record) if sabotaged(Sabotage::BothPromote) => {
                    if let Some(record) = record {
                        return self.promote(Record { active: self.me, ..record }, out);
                    }
                }
                Settled::Failed(_) => self.phase = Phase::Following,
            }
        }
        if self.proposal.is_none() {
            self.check_expelled(out);
        }
    }

    fn promote(&mut self, record: Record, out: &mut Vec<Action>) {
        if let Some(epoch) = self.staged {
            self.phase = Phase::Promoted;
            out.push(Action::Promote(epoch, record));
        }
    }

    fn check_expelled(&mut self, out: &mut Vec<Action>) {
        let Some(record) = &self.record else { return };
        let listed = record.lists(self.me);
        let abandoned = !listed && self.detector.silence() > self.cfg.abandoned_after;
        let expulsion = if record.active != self.active && record.generation > self.generation {
            Expulsion::OtherActive { generation: record.generation, by: record.active }
        } else if self.was_listed && !listed {
            Expulsion::Unlisted
        } else if abandoned && !sabotaged(Sabotage::SeedingTakesOver) {
            Expulsion::Abandoned
        } else {
            self.was_listed |= listed;
            return;
        };
        self.phase = Phase::Expelled;
        out.push(Action::Expelled(expulsion));
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Action>) {
        self.detector.tick(now);
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.cfg.heartbeat_every;
            self.speak(now, out);
        }
        let suspicion = self.detector.suspicion();
        if let (Some(why), false) = (suspicion, self.suspected) {
            out.push(Action::Suspect(why));
        }
        self.suspected = suspicion.is_some();
        self.keep_asking(now, out);
        let outwaited = self.outwaited_at().is_none_or(|at| now >= at);
        let free = outwaited || sabotaged(Sabotage::LeaseNotOutwaited);
        if self.waits_to_take() && free {
            self.try_takeover(now, out);
        }
        self.detector.expect_tick(self.next_tick());
    }

    fn keep_asking(&mut self, now: Time, out: &mut Vec<Action>) {
        if let Some(proposal) = &mut self.proposal {
            if proposal.given_up(now, self.cfg.arbiter_retry) {
                self.proposal = None;
                self.phase = Phase::Following;
            } else if proposal.overdue(now, self.cfg.arbiter_retry) {
                out.push(Action::Arbiter(proposal.request()));
            }
        }
        // While suspecting, a record that does not list us yet may be about to: ask as often as we beat.
        let hurry = self.suspected && self.phase == Phase::Following;
        if now >= self.next_poll
            || hurry && now + self.cfg.record_poll >= self.next_poll + self.cfg.heartbeat_every
        {
            self.next_poll = now + self.cfg.record_poll;
            out.push(Action::Arbiter(Request::Read));
        }
    }

    /// Said again with every heartbeat, so that a swap that fails is tried again, and one that cannot be tried yet is later.
    /// No lease is out that this replica gave: the active has said so with its newest stamp.
    fn yielded(&mut self, now: Time, said: Yield, out: &mut Vec<Action>) {
        let newest = self.stamp <= Some(said.sent_at) || sabotaged(Sabotage::LeaseOutlivesHandover);
        let mine = said.generation == self.generation && self.staged == Some(said.epoch);
        if mine && newest && self.phase == Phase::Following {
            self.try_takeover(now, out);
        }
    }

    fn lease_given(&self) -> Option<Lease> {
        match self.record.as_ref()?.mode {
            Mode::Sync => None,
            Mode::Async(lease) => Some(lease),
        }
    }

    fn waits_to_take(&self) -> bool {
        self.suspected && self.phase == Phase::Following
    }

    /// When the newest lease this replica may have given is sure to have ended; none if it gives none. The swap that follows is
    /// refused if the record has another mode than the one this goes by.
    fn outwaited_at(&self) -> Option<Time> {
        self.lease_given().map(|lease| self.stamp_at + lease.outwaited())
    }

    fn try_takeover(&mut self, now: Time, out: &mut Vec<Action>) {
        let reachable = self.answered_at.is_some_and(|at| now.since(at) <= self.cfg.arbiter_fresh);
        let (Some(epoch), Some(record), true) = (self.staged, &self.record, reachable) else { return };
        if !record.lists(self.me) && !sabotaged(Sabotage::SeedingTakesOver) {
            return;
        }
        self.ops += 1;
        let swap = Swap {
            vm: self.vm.clone(),
            expected_version: record.version,
            proposer: self.me,
            op: OpId { incarnation: self.me.incarnation, count: self.ops },
            change: Change::TakeOver { epoch },
        };
        self.phase = Phase::Taking;
        let proposal = Proposal::new(swap, now);
        out.push(Action::Taking);
        out.push(Action::Arbiter(proposal.request()));
        self.proposal = Some(proposal);
    }
}

#[cfg(test)]
mod tests;
