//! Judging whether a path is heard.
//!
//! ```text
//!            silent for max(100 ms, 4 RTT)            silent for 300 ms more
//!   Live ───────────────────────────────> Suspect ─────────────────────────> Suspect, stale (dial anew)
//!    ^                                       │                                  │
//!    └────────────── heard ──────────────────┴──────────────────────────────────┘
//! ```
//!
//! Silence is the only evidence, and it condemns a path, never the peer.

use std::time::Duration;

use crate::limits::{SILENCE_MIN, SILENCE_RTTS, STALE_AFTER};

/// What one observation changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The path fell silent; how long it has been so.
    Suspect(Duration),
    /// The path was heard again.
    Live,
}

/// The hearing of one path. Times are since any fixed start.
#[derive(Clone, Debug)]
pub struct Liveness {
    heard_at: Duration,
    suspect: bool,
}

impl Liveness {
    /// A path just heard, at `now`.
    pub fn new(now: Duration) -> Self {
        Self { heard_at: now, suspect: false }
    }

    /// Silence that makes a path of this round-trip time suspect.
    pub fn silence_limit(rtt: Duration) -> Duration {
        SILENCE_MIN.max(rtt * SILENCE_RTTS)
    }

    /// Takes one observation: was anything received since the last one, what is the round-trip time, and for how
    /// long was the observer itself not running (`absent`)? Absence is not the path's silence and is not counted.
    pub fn observe(&mut self, now: Duration, heard: bool, rtt: Duration, absent: Duration) -> Option<Change> {
        if heard {
            self.heard_at = now;
            return std::mem::take(&mut self.suspect).then_some(Change::Live);
        }
        self.heard_at = (self.heard_at + absent).min(now);
        let silent = now - self.heard_at;
        if self.suspect || silent <= Self::silence_limit(rtt) {
            return None;
        }
        self.suspect = true;
        Some(Change::Suspect(silent))
    }

    /// Whether the path is silent at present.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Whether the path has been suspect so long that a fresh connection should be tried.
    pub fn is_stale(&self, now: Duration, rtt: Duration) -> bool {
        self.suspect && now.saturating_sub(self.heard_at) > Self::silence_limit(rtt) + STALE_AFTER
    }

    /// When the path was last heard.
    pub fn heard_at(&self) -> Duration {
        self.heard_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn silence_makes_suspect_then_stale_and_one_packet_heals() {
        let mut path = Liveness::new(ms(0));
        assert_eq!(path.observe(ms(100), false, RTT, ms(0)), None);
        assert_eq!(path.observe(ms(110), false, RTT, ms(0)), Some(Change::Suspect(ms(110))));
        assert_eq!(path.observe(ms(120), false, RTT, ms(0)), None);
        assert!(!path.is_stale(ms(300), RTT));
        assert!(path.is_stale(ms(401), RTT));
        assert_eq!(path.observe(ms(410), true, RTT, ms(0)), Some(Change::Live));
        assert!(!path.is_stale(ms(410), RTT) && !path.is_suspect());
    }

    #[test]
    fn a_long_path_is_given_four_round_trips() {
        let mut path = Liveness::new(ms(0));
        assert_eq!(path.observe(ms(590), false, ms(150), ms(0)), None);
        assert!(path.observe(ms(601), false, ms(150), ms(0)).is_some());
    }

    #[test]
    fn time_in_which_the_observer_did_not_run_does_not_count() {
        let mut path = Liveness::new(ms(0));
        assert_eq!(path.observe(ms(5_000), false, RTT, ms(4_950)), None);
        assert!(path.observe(ms(5_060), false, RTT, ms(0)).is_some());
    }
}
