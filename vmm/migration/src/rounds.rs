//! When to switch: pre-copy in rounds, each of what was written during the one before, until the rest can be sent within
//! the downtime aimed at.

use std::time::Duration;

use mycelium_ram_core::page_codec::PAGE_BYTES;

use crate::limits::{BANDWIDTH_SAMPLE_BYTES, PROGRESS_PERCENT, ROUNDS_MAX, STALLED_ROUNDS_MAX};

/// What a round did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Bytes it sent.
    pub bytes: u64,
    /// How long that took, until the destination had them.
    pub took: Duration,
    /// Pages written meanwhile: what the next round has to send.
    pub dirty_pages: u64,
}

/// What follows a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one.
    Again,
    /// The guest is stopped for the rest, which should take this long.
    Switch(Duration),
    /// It leads nowhere.
    GiveUp(NoEnd),
}

/// A guest that writes faster than the link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest writes its memory faster than the link carries it: after {rounds} rounds {dirty_mib} MiB are left, which take \
     {} ms at {} MiB/s, and the downtime aimed at is {} ms; allow a longer one (--downtime), or use post-copy",
    predicted.as_millis(), bytes_per_s >> 20, target.as_millis()
)]
pub struct NoEnd {
    /// Rounds made.
    pub rounds: u32,
    /// What is left, MiB.
    pub dirty_mib: u64,
    /// What the link carries, bytes a second.
    pub bytes_per_s: u64,
    /// How long the rest would take.
    pub predicted: Duration,
    /// What was aimed at.
    pub target: Duration,
}

/// The rounds so far.
#[derive(Clone, Debug)]
pub struct Rounds {
    target: Duration,
    made: u32,
    /// Fewest pages a round has left.
    best: u64,
    stalled: u32,
    bytes_per_s: u64,
}

impl Rounds {
    /// Before the first; the guest may stand for `target`.
    #[must_use]
    pub fn new(target: Duration) -> Self {
        Self { target, made: 0, best: u64::MAX, stalled: 0, bytes_per_s: 0 }
    }

    /// How many were made.
    #[must_use]
    pub fn made(&self) -> u32 {
        self.made
    }

    /// What the link carries, bytes a second; 0 before anything is known.
    #[must_use]
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// A round is over: what next?
    pub fn finished(&mut self, round: Round) -> Next {
        self.made += 1;
        self.measure(&round);
        let predicted = self.predict(round.dirty_pages);
        if predicted <= self.target {
            return Next::Switch(predicted);
        }
        let progress = self.best == u64::MAX || round.dirty_pages < self.best / 100 * PROGRESS_PERCENT;
        self.best = self.best.min(round.dirty_pages);
        self.stalled = if progress { 0 } else { self.stalled + 1 };
        if self.stalled < STALLED_ROUNDS_MAX && self.made < ROUNDS_MAX {
            return Next::Again;
        }
        Next::GiveUp(NoEnd {
            rounds: self.made,
            dirty_mib: (round.dirty_pages * PAGE_BYTES as u64) >> 20,
            bytes_per_s: self.bytes_per_s,
            predicted,
            target: self.target,
        })
    }

    fn measure(&mut self, round: &Round) {
        if round.bytes >= BANDWIDTH_SAMPLE_BYTES || self.bytes_per_s == 0 {
            let us = u64::try_from(round.took.as_micros()).unwrap_or(u64::MAX).max(1);
            self.bytes_per_s = round.bytes.saturating_mul(1_000_000) / us;
        }
    }

    /// How long so many pages take to send.
    fn predict(&self, pages: u64) -> Duration {
        let bytes = pages.saturating_mul(PAGE_BYTES as u64);
        match bytes.saturating_mul(1_000_000).checked_div(self.bytes_per_s) {
            Some(us) => Duration::from_micros(us),
            None if pages == 0 => Duration::ZERO,
            None => Duration::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 256;
    const TARGET: Duration = Duration::from_millis(100);

    /// A round at 100 MiB/s.
    fn round(sent: u64, dirty: u64) -> Round {
        let took = Duration::from_micros(sent * 4096 * 1_000_000 / (100 << 20));
        Round { bytes: sent * 4096, took, dirty_pages: dirty }
    }

    #[test]
    fn an_idle_guest_switches_after_one_round() {
        let mut rounds = Rounds::new(TARGET);
        let Next::Switch(predicted) = rounds.finished(round(512 * MIB, 5 * MIB)) else { panic!() };
        assert_eq!((predicted.as_millis(), rounds.made()), (50, 1));
    }

    #[test]
    fn a_guest_that_is_slower_than_the_link_is_caught() {
        let mut rounds = Rounds::new(TARGET);
        assert_eq!(rounds.finished(round(512 * MIB, 100 * MIB)), Next::Again);
        assert_eq!(rounds.finished(round(100 * MIB, 20 * MIB)), Next::Again);
        assert!(matches!(rounds.finished(round(20 * MIB, 4 * MIB)), Next::Switch(_)));
    }

    #[test]
    fn a_guest_that_is_faster_is_given_up_with_the_remedy() {
        let mut rounds = Rounds::new(TARGET);
        let mut next = rounds.finished(round(512 * MIB, 300 * MIB));
        while next == Next::Again {
            next = rounds.finished(round(300 * MIB, 300 * MIB));
        }
        let Next::GiveUp(no_end) = next else { panic!() };
        assert_eq!(no_end.rounds, 1 + STALLED_ROUNDS_MAX);
        let said = no_end.to_string();
        assert!(said.contains("300 MiB are left, which take 3000 ms at 100 MiB/s"), "{said}");
        assert!(said.contains("--downtime") && said.contains("post-copy"), "{said}");
    }

    #[test]
    fn a_short_round_does_not_spoil_the_bandwidth() {
        let mut rounds = Rounds::new(Duration::from_millis(1));
        rounds.finished(round(512 * MIB, 10 * MIB));
        rounds.finished(Round { bytes: 8, took: Duration::from_secs(1), dirty_pages: MIB });
        assert_eq!(rounds.bytes_per_s() >> 20, 100);
    }

    proptest! {
        #[test]
        fn it_ends_whatever_the_guest_does(dirty in proptest::collection::vec(1u64..1 << 28, 60), bytes in 0u64..1 << 40) {
            let mut rounds = Rounds::new(Duration::ZERO);
            let took = Duration::from_secs(1);
            let ends = dirty.iter().any(|dirty_pages| {
                rounds.finished(Round { bytes, took, dirty_pages: *dirty_pages }) != Next::Again
            });
            prop_assert!(ends);
        }
    }
}
