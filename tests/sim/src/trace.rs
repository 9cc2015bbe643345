//! What happened, for people (lines, on demand) and for comparison (a hash, always).

use std::collections::VecDeque;

use crate::limits;
use crate::rng::mix;

/// The trace of one run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    keeps_lines: bool,
    lines: VecDeque<String>,
    hash: u64,
}

impl Trace {
    /// A trace that keeps only the hash, or the lines too.
    #[must_use]
    pub fn new(keeps_lines: bool) -> Self {
        Self { keeps_lines, ..Self::default() }
    }

    pub(crate) fn fold(&mut self, word: u64) {
        self.hash = mix(self.hash ^ word);
    }

    pub(crate) fn note(&mut self, now: u64, line: impl FnOnce() -> String) {
        if !self.keeps_lines {
            return;
        }
        if self.lines.len() == limits::TRACE_LINES {
            self.lines.pop_front();
        }
        let (ms, us) = (now / 1_000_000, now / 1_000 % 1_000);
        self.lines.push_back(format!("{ms:>6}.{us:03} ms  {}", line()));
    }

    /// Two runs of the same seed have the same hash.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines kept, oldest first.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
