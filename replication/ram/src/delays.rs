//! Where the time goes between an output and its release.
//!
//! ```text
//!   output waits ── wait ── cut ordered ── cut ── epoch sealed ── commit ── released
//! ```

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use mycelium_ram_core::{EpochId, Time};

use crate::events::Spread;
use crate::gate::micros;

/// Sealed epochs whose release is awaited; the protocol has far fewer under way.
const EPOCHS: usize = 64;

/// Percentiles of the parts, in microseconds, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DelayFigures {
    pub(crate) wait: Spread,
    pub(crate) cut: Spread,
    pub(crate) commit: Spread,
}

/// Measures the parts, told of each step as it happens.
#[derive(Debug)]
pub(crate) struct Delays {
    pending: Option<Time>,
    ordered: Option<Time>,
    /// When each was sealed, and how many bytes changed in it.
    sealed: VecDeque<(EpochId, Time, u64)>,
    wait: Histogram<u64>,
    cut: Histogram<u64>,
    commit: Histogram<u64>,
}

impl Delays {
    pub(crate) fn new() -> Self {
        let empty = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        Self {
            pending: None,
            ordered: None,
            sealed: VecDeque::new(),
            wait: empty(),
            cut: empty(),
            commit: empty(),
        }
    }

    /// The first output of the open epoch waits.
    pub(crate) fn pending(&mut self, now: Time) {
        self.pending.get_or_insert(now);
    }

    /// The open epoch is to end.
    pub(crate) fn ordered(&mut self, now: Time) {
        if let Some(pending) = self.pending.take() {
            record(&mut self.wait, pending, now);
        }
        self.ordered = Some(now);
    }

    /// It has ended; so many bytes changed in it.
    pub(crate) fn sealed(&mut self, epoch: EpochId, bytes: u64, now: Time) {
        if let Some(ordered) = self.ordered.take() {
            record(&mut self.cut, ordered, now);
        }
        if self.sealed.len() == EPOCHS {
            self.sealed.pop_front();
        }
        self.sealed.push_back((epoch, now, bytes));
    }

    /// The output of all epochs up to this one leaves.
    pub(crate) fn released(&mut self, through: EpochId, now: Time) {
        while let Some((_, at, _)) = self.sealed.pop_front_if(|(epoch, _, _)| *epoch <= through) {
            record(&mut self.commit, at, now);
        }
    }

    /// Bytes that changed in epochs of which the output has not been released.
    pub(crate) fn unreleased_bytes(&self) -> u64 {
        self.sealed.iter().map(|(_, _, bytes)| bytes).sum()
    }

    pub(crate) fn figures(&self) -> DelayFigures {
        DelayFigures {
            wait: Spread::of(&self.wait),
            cut: Spread::of(&self.cut),
            commit: Spread::of(&self.commit),
        }
    }
}

fn record(into: &mut Histogram<u64>, from: Time, to: Time) {
    into.saturating_record(micros(to.since(from)).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_measured_from_the_step_before() {
        let mut delays = Delays::new();
        let at = |us: u64| Time(us * 1000);
        delays.pending(at(100));
        delays.pending(at(150));
        delays.ordered(at(300));
        delays.sealed(EpochId(1), 4096, at(340));
        delays.ordered(at(400));
        delays.sealed(EpochId(2), 8192, at(450));
        assert_eq!(delays.unreleased_bytes(), 12_288);
        delays.released(EpochId(2), at(900));
        assert_eq!(delays.unreleased_bytes(), 0);
        let DelayFigures { wait, cut, commit } = delays.figures();
        assert_eq!((wait.n, wait.max), (1, 200));
        assert_eq!((cut.n, cut.max), (2, 50));
        assert_eq!((commit.n, commit.max), (2, 560));
    }
}
