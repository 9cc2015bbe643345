//! Deciding that a peer is lost, from silence alone.
//!
//! A heartbeat is evidence of three things, and each of them can go silent by itself:
//!
//! - *heard*: something arrives from the peer at all;
//! - *echo*: what it sends repeats my own newest stamp, so my messages reach it too (one-way loss shows here);
//! - *progress*: the counter of its epoch loop moves (a process whose heartbeat thread outlives its work shows here).
//!
//! Limits adapt to the jitter seen: mean plus a multiple of the mean deviation, as TCP's retransmission timer does
//! (RFC 6298), between a floor and a ceiling. Time during which this process did not run is taken out of every
//! silence, because a stopped observer has seen nothing, not silence. Refused connections, ICMP and process ids are no
//! evidence either way and have no entry here.

use std::time::Duration;

use crate::sabotage::{Sabotage, sabotaged};
use crate::time::Time;

/// How patient the detector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DetectorConfig {
    /// Silence shorter than this is never suspect.
    pub floor: Duration,
    /// Silence longer than this always is.
    pub ceiling: Duration,
    /// An epoch loop that makes no progress for this long has hung.
    pub hung_after: Duration,
    /// A tick that comes later than this after it was due shows that the process did not run.
    pub late: Duration,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            floor: Duration::from_millis(60),
            ceiling: Duration::from_millis(1000),
            hung_after: Duration::from_millis(500),
            late: Duration::from_millis(5),
        }
    }
}

/// What is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing arrives.
    Silent,
    /// It sends, but does not hear us.
    OneWay,
    /// It sends and hears, but its epoch loop stands still.
    Hung,
}

/// Mean and mean deviation of a series, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Spread {
    mean: f64,
    deviation: f64,
}

impl Spread {
    /// Weight of the newest sample: slow enough to remember a burst of jitter for some tens of heartbeats.
    const WEIGHT: f64 = 1.0 / 16.0;

    fn add(&mut self, sample: Duration) {
        let sample = sample.as_nanos() as f64;
        self.deviation += Self::WEIGHT * ((sample - self.mean).abs() - self.deviation);
        self.mean += Self::WEIGHT * (sample - self.mean);
    }

    fn limit(&self) -> Duration {
        Duration::from_secs_f64((self.mean + 8.0 * self.deviation).max(0.0) / 1e9)
    }
}

/// Watches one peer.
#[derive(Clone, Debug)]
pub struct Detector {
    cfg: DetectorConfig,
    last_tick: Time,
    /// When the next tick comes at the latest while the process runs.
    due: Time,
    heard_at: Time,
    echo_at: Time,
    progress_at: Time,
    progress: u64,
    gaps: Spread,
    echo_ages: Spread,
}

impl Detector {
    /// Starts watching; the peer counts as just heard.
    #[must_use]
    pub fn new(cfg: DetectorConfig, heartbeat_every: Duration, now: Time) -> Self {
        let start = Spread { mean: heartbeat_every.as_nanos() as f64, deviation: 0.0 };
        Self {
            cfg,
            last_tick: now,
            due: now,
            heard_at: now,
            echo_at: now,
            progress_at: now,
            progress: 0,
            gaps: start,
            echo_ages: start,
        }
    }

    /// Must be called when due ([`Detector::expect_tick`]) or earlier, after everything that has arrived has been handed to
    /// [`Detector::heard`].
    pub fn tick(&mut self, now: Time) {
        let skipped = now.since(self.due + self.cfg.late);
        // What was heard after the stop and before this tick is not older than now.
        self.heard_at = (self.heard_at + skipped).min(now);
        self.echo_at = (self.echo_at + skipped).min(now);
        self.progress_at = (self.progress_at + skipped).min(now);
        self.last_tick = now;
        self.due = now;
    }

    /// The next tick will come at this time at the latest. Without this word it is due at once.
    pub fn expect_tick(&mut self, at: Time) {
        self.due = at.max(self.last_tick);
    }

    /// Whether this process has been running up to now, as far as its ticks tell.
    #[must_use]
    pub fn is_running(&self, now: Time) -> bool {
        now <= self.due + self.cfg.late
    }

    /// A heartbeat arrived, carrying the newest of my own stamps that the peer has seen, and its progress counter.
    pub fn heard(&mut self, now: Time, echo: Option<Time>, progress: u64) {
        // What waited in a socket while this process was stopped says nothing about the path.
        let running = self.is_running(now);
        if running {
            self.gaps.add(now.since(self.heard_at));
        }
        self.heard_at = now;
        if let Some(echo) = echo {
            if running {
                self.echo_ages.add(now.since(echo));
            }
            self.echo_at = self.echo_at.max(echo);
        }
        if progress != self.progress || sabotaged(Sabotage::ProgressNotInHeartbeats) {
            self.progress = progress;
            self.progress_at = now;
        }
    }

    /// What is suspect at the time of the last tick, if anything.
    #[must_use]
    pub fn suspicion(&self) -> Option<Suspicion> {
        let now = self.last_tick;
        if now.since(self.heard_at) > self.silence_limit() {
            Some(Suspicion::Silent)
        } else if now.since(self.echo_at) > self.echo_limit() {
            Some(Suspicion::OneWay)
        } else if now.since(self.progress_at) > self.cfg.hung_after {
            Some(Suspicion::Hung)
        } else {
            None
        }
    }

    /// When, without another word from the peer, it will be suspect; a tick is to follow then. None once it is.
    #[must_use]
    pub fn suspect_at(&self) -> Option<Time> {
        if self.suspicion().is_some() {
            return None;
        }
        let silent = self.heard_at + self.silence_limit();
        let one_way = self.echo_at + self.echo_limit();
        let hung = self.progress_at + self.cfg.hung_after;
        Some(silent.min(one_way).min(hung) + Duration::from_nanos(1))
    }

    /// The time of the last tick.
    #[must_use]
    pub fn ticked_at(&self) -> Time {
        self.last_tick
    }

    /// Silence so far, at the time of the last tick.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.last_tick.since(self.heard_at)
    }

    /// Silence beyond which the peer is suspect.
    #[must_use]
    pub fn silence_limit(&self) -> Duration {
        self.gaps.limit().clamp(self.cfg.floor, self.cfg.ceiling)
    }

    fn echo_limit(&self) -> Duration {
        (self.gaps.limit() + self.echo_ages.limit()).clamp(self.cfg.floor * 2, self.cfg.ceiling * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_millis(10);

    #[test]
    fn the_time_of_suspicion_is_known_before() {
        let (mut d, now) = watched(4);
        let at = d.suspect_at().expect("a peer that was just heard");
        assert!(at > now);
        d.expect_tick(at - Duration::from_nanos(1));
        d.tick(at - Duration::from_nanos(1));
        assert_eq!((d.suspicion(), d.suspect_at()), (None, Some(at)));
        d.tick(at);
        assert_eq!((d.suspicion(), d.suspect_at()), (Some(Suspicion::Silent), None));
    }

    fn watched(jitter_ms: u64) -> (Detector, Time) {
        let mut d = Detector::new(DetectorConfig::default(), BEAT, Time(0));
        let mut now = Time(0);
        for n in 1..200u64 {
            for _ in 0..10 + if n % 2 == 0 { jitter_ms } else { 0 } {
                now = now + Duration::from_millis(1);
                d.tick(now);
            }
            d.heard(now, Some(now - Duration::from_millis(1)), n);
            d.tick(now);
        }
        (d, now)
    }

    /// Ticks every 5 ms without a heartbeat until something is suspect.
    fn silence_until_suspect(d: &mut Detector, mut now: Time) -> (Duration, Suspicion) {
        let from = now;
        loop {
            now = now + Duration::from_millis(5);
            d.tick(now);
            if let Some(s) = d.suspicion() {
                return (now.since(from), s);
            }
            assert!(now.since(from) < Duration::from_secs(5), "never suspects");
        }
    }

    #[test]
    fn silence_is_noticed_just_past_the_floor_on_a_calm_path() {
        let (mut d, now) = watched(0);
        let (after, why) = silence_until_suspect(&mut d, now);
        assert_eq!((after, why), (Duration::from_millis(65), Suspicion::Silent));
    }

    #[test]
    fn jitter_makes_it_more_patient() {
        let (mut d, now) = watched(20);
        let (after, _) = silence_until_suspect(&mut d, now);
        assert!(after > Duration::from_millis(80), "{after:?}");
    }

    #[test]
    fn one_way_loss_is_noticed() {
        let (mut d, mut now) = watched(0);
        let stuck = now;
        for n in 1000.. {
            now = now + BEAT;
            d.heard(now, Some(stuck), n);
            d.tick(now);
            if let Some(s) = d.suspicion() {
                assert_eq!(s, Suspicion::OneWay);
                break;
            }
            assert!(now.since(stuck) < Duration::from_secs(5));
        }
    }

    #[test]
    fn a_hung_epoch_loop_is_noticed() {
        let (mut d, mut now) = watched(0);
        let start = now;
        while d.suspicion().is_none() {
            now = now + BEAT;
            d.heard(now, Some(now), 199);
            d.tick(now);
            assert!(now.since(start) < Duration::from_secs(2));
        }
        assert_eq!(d.suspicion(), Some(Suspicion::Hung));
    }

    #[test]
    fn time_in_which_the_observer_was_stopped_is_not_silence() {
        let (mut d, now) = watched(0);
        let woken = now + Duration::from_secs(30);
        d.tick(woken);
        assert_eq!(d.suspicion(), None);
        let (after, _) = silence_until_suspect(&mut d, woken);
        assert!(after > Duration::from_millis(30), "{after:?}");
    }

    /// Found by the simulator: what was heard right after a stop was moved into the future by the stop's length, and the
    /// stop itself was learned as jitter; a peer lost afterwards was missed for as long.
    #[test]
    fn after_a_stop_silence_is_noticed_as_soon_as_ever() {
        let (mut d, now) = watched(0);
        let woken = now + Duration::from_secs(30);
        d.heard(woken, Some(now), 300);
        d.tick(woken);
        let (after, why) = silence_until_suspect(&mut d, woken);
        assert_eq!((after, why), (Duration::from_millis(65), Suspicion::Silent));
    }
}
