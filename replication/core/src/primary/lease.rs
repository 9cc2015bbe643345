//! Speaking before the commit: until when output that nobody has committed may leave. See [`crate::mode`].

use std::collections::VecDeque;
use std::time::Duration;

use super::{Action, Primary};
use crate::ids::EpochId;
use crate::mode::{Lease, Mode};
use crate::output::GateMode;
use crate::sabotage::{Sabotage, sabotaged};
use crate::time::Time;

/// When epochs began, of those that nobody has committed.
#[derive(Debug)]
pub(super) struct Begun(VecDeque<(EpochId, Time)>);

impl Begun {
    /// Later ones count as begun with the newest of these: too early, which shows more to be lost than is.
    const MAX: usize = 64;

    pub(super) fn new(open: EpochId, now: Time) -> Self {
        Self(VecDeque::from([(open, now)]))
    }

    /// The epoch before this one is about to end.
    pub(super) fn begin(&mut self, epoch: EpochId, now: Time) {
        // There already if the cut that was to begin it failed.
        self.0.pop_back_if(|(newest, _)| *newest == epoch);
        if self.0.len() < Self::MAX {
            self.0.push_back((epoch, now));
        }
    }

    /// Epochs up to this one have committed.
    pub(super) fn committed(&mut self, through: EpochId) {
        // The first of what is left says when the oldest began, or one before it.
        while self.0.get(1).is_some_and(|(next, _)| *next <= through.next()) {
            self.0.pop_front();
        }
    }

    /// When the oldest one began.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.0.front().map(|(_, at)| *at)
    }
}

impl Primary {
    /// How much of the guest's time would be lost with this host, of which somebody may have heard. None unless output leaves
    /// before its commit.
    #[must_use]
    pub fn exposure(&self, now: Time) -> Option<Duration> {
        let begun = self.begun.oldest().filter(|_| self.gate == GateMode::Leased)?;
        Some(now.since(begun))
    }

    /// Whether the record is to say another mode than it does. Until it does, output waits.
    pub(super) fn changes_mode(&self) -> bool {
        self.wanted_mode.is_some_and(|mode| mode != self.record.mode)
    }

    /// Whether a change of the mode can be proposed: whoever takes over by the new record reckons with no lease of the old one.
    pub(super) fn may_change_mode(&self, now: Time) -> bool {
        self.gate != GateMode::Leased && now > self.leased_until + Lease::CHECK_TO_SEND
    }

    /// Begins, goes on or ends speaking before the commit.
    pub(super) fn lead(&mut self, now: Time, out: &mut Vec<Action>) {
        match self.lease(now) {
            Some(until) => {
                let begins = self.gate != GateMode::Leased;
                if begins {
                    self.gate = GateMode::Leased;
                    out.push(Action::Gate(GateMode::Leased));
                }
                if begins || until != self.leased_now {
                    self.leased_now = until;
                    // The bound on what may be lost can end it sooner than was said before.
                    self.leased_until = self.leased_until.max(until);
                    out.push(Action::Lease(until));
                }
            }
            None if self.gate == GateMode::Leased => self.hold_gate(out),
            None => {}
        }
    }

    /// Until when, if at all. It may be over.
    fn lease(&self, now: Time) -> Option<Time> {
        let Mode::Async(lease) = self.record.mode else { return None };
        let stands_back = self.doubt || self.hand_over.is_some() || self.retiring || self.must_halt();
        if self.gate == GateMode::Open || stands_back || self.changes_mode() {
            return None;
        }
        let mut until = None;
        for peer in self.peers.iter().filter(|p| p.standing.is_required()) {
            let valid = |echo: &Time| *echo > self.echoes_from || sabotaged(Sabotage::LeaseOutlivesHandover);
            let echo = peer.echo.filter(valid)?;
            let from = if sabotaged(Sabotage::LeaseFromArrival) { peer.echo_heard_at } else { echo };
            let ends = from + lease.length();
            until = Some(until.map_or(ends, |until: Time| until.min(ends)));
        }
        let bound = self.begun.oldest().map_or(now, |begun| begun + lease.exposure());
        until.map(|until| if sabotaged(Sabotage::ExposureUnbounded) { until } else { until.min(bound) })
    }
}
