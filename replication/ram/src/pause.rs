//! Where the time goes in a pause.

use hdrhistogram::Histogram;
use mycelium_ram_core::Time;
use serde::{Deserialize, Serialize};

use crate::events::Spread;
use crate::gate::micros;

/// Percentiles of a pause and its parts, in microseconds, since the start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PauseFigures {
    /// The guest stood still.
    pub whole: Spread,
    /// Of it: until vCPUs and devices held still.
    pub stop: Spread,
    /// Reading which pages changed, and watching them anew.
    pub log: Spread,
    /// Saving vCPUs and devices.
    pub state: Spread,
    /// Copying the pages.
    pub copy: Spread,
    /// Letting the guest go on.
    pub resume: Spread,
}

/// The ends of a pause's parts, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    pub(crate) begun: Time,
    pub(crate) stopped: Time,
    pub(crate) logged: Time,
    pub(crate) saved: Time,
    pub(crate) copied: Time,
    pub(crate) resumed: Time,
}

/// Collects pauses.
#[derive(Debug)]
pub(crate) struct Pauses {
    parts: [Histogram<u64>; 6],
}

impl Pauses {
    pub(crate) fn new() -> Self {
        let empty = |_| Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        Self { parts: std::array::from_fn(empty) }
    }

    pub(crate) fn add(&mut self, at: Steps) {
        let ends = [at.begun, at.stopped, at.logged, at.saved, at.copied, at.resumed];
        let spans = ends.windows(2).map(|pair| pair[1].since(pair[0]));
        let all = std::iter::once(at.resumed.since(at.begun)).chain(spans);
        for (part, span) in self.parts.iter_mut().zip(all) {
            part.saturating_record(micros(span).max(1));
        }
    }

    pub(crate) fn figures(&self) -> PauseFigures {
        let [whole, stop, log, state, copy, resume] = self.parts.each_ref().map(Spread::of);
        PauseFigures { whole, stop, log, state, copy, resume }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_sum_to_the_pause() {
        let mut pauses = Pauses::new();
        let at = |us: u64| Time(us * 1000);
        pauses.add(Steps {
            begun: at(0),
            stopped: at(10),
            logged: at(30),
            saved: at(60),
            copied: at(100),
            resumed: at(105),
        });
        let f = pauses.figures();
        let parts = [f.stop, f.log, f.state, f.copy, f.resume].map(|part| part.max);
        assert_eq!(parts, [10, 20, 30, 40, 5]);
        assert_eq!(f.whole.max, parts.iter().sum::<u64>());
    }
}
