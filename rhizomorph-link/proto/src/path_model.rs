//! What is known of one path's capacity: enough to say when a stripe given to it now would arrive.

use std::time::Duration;

use crate::ids::Priority;
use crate::limits::{PATH_QUEUE_MAX, PATH_QUEUE_MIN};

/// Shortest stretch of uninterrupted sending that counts as a measurement of the rate.
const SAMPLE_MIN: Duration = Duration::from_millis(10);

/// Time beyond two round trips for which bytes are handed to a path: covers the scheduling delay of both ends.
const QUEUE_SLACK: Duration = Duration::from_millis(10);

/// Rate assumed before anything is known, bytes a second (10 Mbit/s): low enough that a known path is preferred.
const RATE_UNKNOWN: f64 = 1.25e6;

/// A rate measured longer ago than this is forgotten: a path that once did badly must get another chance.
const RATE_HOLDS: Duration = Duration::from_secs(2);

/// Load, rate and delay of one path. Times are since any fixed start, rates in bytes a second.
#[derive(Clone, Debug)]
pub struct PathModel {
    in_flight: [u64; 2],
    rtt: Duration,
    hint: f64,
    measured: Option<f64>,
    measured_at: Duration,
    sample: Option<Sample>,
}

/// A stretch of uninterrupted sending.
#[derive(Clone, Copy, Debug)]
struct Sample {
    start: Duration,
    bytes: u64,
    /// The path had as much to do as it could take: what it delivered is its rate, not ours.
    pressed: bool,
}

impl PathModel {
    /// A fresh path of this round-trip time.
    pub fn new(rtt: Duration) -> Self {
        Self {
            in_flight: [0; 2],
            rtt,
            hint: RATE_UNKNOWN,
            measured: None,
            measured_at: Duration::ZERO,
            sample: None,
        }
    }

    /// What the transport knows: its round-trip time, and its congestion window in bytes, from which a rate is
    /// guessed while none was measured lately.
    pub fn hint(&mut self, rtt: Duration, cwnd: u64, now: Duration) {
        self.rtt = rtt;
        self.measured = self.measured.filter(|_| now.saturating_sub(self.measured_at) < RATE_HOLDS);
        self.hint = (as_f64(cwnd) / rtt.as_secs_f64().max(1e-4)).max(RATE_UNKNOWN);
    }

    /// Round-trip time as last told.
    pub fn rtt(&self) -> Duration {
        self.rtt
    }

    /// Bytes a second this path is believed to deliver.
    pub fn rate(&self) -> f64 {
        self.measured.unwrap_or(self.hint)
    }

    /// Bytes handed over and not yet delivered, both classes.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.iter().sum()
    }

    /// `bytes` of that class were handed to the path.
    pub fn sent(&mut self, priority: Priority, bytes: u64, now: Duration) {
        self.in_flight[priority.index()] += bytes;
        let pressed = self.is_pressed();
        let sample = self.sample.get_or_insert(Sample { start: now, bytes: 0, pressed });
        sample.pressed |= pressed;
    }

    /// `bytes` of that class arrived.
    pub fn delivered(&mut self, priority: Priority, bytes: u64, now: Duration) {
        if let Some(sample) = &mut self.sample {
            sample.bytes += bytes;
        }
        self.taken_back(priority, bytes);
        self.measure(now);
    }

    /// `bytes` of that class left the path without arriving: recalled, or no longer needed.
    pub fn taken_back(&mut self, priority: Priority, bytes: u64) {
        let class = &mut self.in_flight[priority.index()];
        *class = class.saturating_sub(bytes);
    }

    fn measure(&mut self, now: Duration) {
        let Some(sample) = self.sample else { return };
        let span = now.saturating_sub(sample.start);
        let busy = self.in_flight() > 0;
        if span >= SAMPLE_MIN.max(self.rtt) {
            self.learn(as_f64(sample.bytes) / span.as_secs_f64(), sample.pressed, now);
            self.sample = None;
        }
        if !busy {
            self.sample = None;
        } else if self.sample.is_none() {
            self.sample = Some(Sample { start: now, bytes: 0, pressed: self.is_pressed() });
        }
    }

    /// A path with little to do shows a lower bound of its rate only.
    fn learn(&mut self, sample: f64, pressed: bool, now: Duration) {
        self.measured = match self.measured {
            // Half weight: a changed path is known after a few round trips, one hiccup does not move everything.
            Some(old) if pressed => Some(old.midpoint(sample)),
            None if pressed => Some(sample),
            known if sample > self.rate() => Some(known.map_or(sample, |old| old.max(sample))),
            _ => return,
        };
        self.measured_at = now;
    }

    fn is_pressed(&self) -> bool {
        self.in_flight() * 2 >= self.queue_limit()
    }

    /// Bytes that may be handed to this path before earlier ones arrive.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the queue bounds"
    )]
    pub fn queue_limit(&self) -> u64 {
        let span = self.rtt * 2 + QUEUE_SLACK;
        ((self.rate() * span.as_secs_f64()) as u64).clamp(PATH_QUEUE_MIN, PATH_QUEUE_MAX)
    }

    /// Bytes of this class, or of a more urgent one, that a new stripe would queue behind.
    pub fn ahead_of(&self, priority: Priority) -> u64 {
        self.in_flight[..=priority.index()].iter().sum()
    }

    /// Seconds until the last of `bytes` queued here now would arrive.
    pub fn completion(&self, bytes: u64) -> f64 {
        as_f64(bytes) / self.rate().max(1.0) + self.rtt.as_secs_f64() / 2.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "byte counts far below 2^53; an estimate anyway")]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Sends `bytes` at `at`, all delivered 10 ms later.
    fn exchange(path: &mut PathModel, bytes: u64, at: u64) {
        path.sent(Priority::Bulk, bytes, ms(at));
        path.delivered(Priority::Bulk, bytes, ms(at + 10));
    }

    #[test]
    fn learns_the_rate_while_busy_and_not_from_idle_time() {
        let mut path = PathModel::new(ms(1));
        path.sent(Priority::Bulk, 800_000, ms(0));
        path.delivered(Priority::Bulk, 500_000, ms(10));
        assert!((path.rate() - 5e7).abs() < 1e3);
        path.delivered(Priority::Bulk, 300_000, ms(12));
        exchange(&mut path, 500_000, 5_000);
        assert!((path.rate() - 5e7).abs() < 1e3);
    }

    /// Once the cause of a path that was never used again: one tiny message took it for a slow one.
    #[test]
    fn a_tiny_message_does_not_make_a_path_look_slow() {
        let mut path = PathModel::new(ms(1));
        exchange(&mut path, 1, 0);
        assert!(path.rate() >= RATE_UNKNOWN);
        exchange(&mut path, 100_000, 20);
        assert!((path.rate() - 1e7).abs() < 1e3, "a higher lower bound counts");
    }

    #[test]
    fn an_old_measurement_is_forgotten() {
        let mut path = PathModel::new(ms(1));
        path.sent(Priority::Bulk, 900_000, ms(0));
        path.delivered(Priority::Bulk, 1_000, ms(100));
        assert!(path.rate() < RATE_UNKNOWN);
        path.hint(ms(1), 100_000, ms(1_000));
        assert!(path.rate() < RATE_UNKNOWN);
        path.hint(ms(1), 100_000, ms(2_101));
        assert!((path.rate() - 1e8).abs() < 1e3);
    }

    #[test]
    fn control_queues_behind_control_only() {
        let mut path = PathModel::new(ms(1));
        path.sent(Priority::Bulk, 1000, ms(0));
        path.sent(Priority::Control, 10, ms(0));
        assert_eq!((path.ahead_of(Priority::Control), path.ahead_of(Priority::Bulk)), (10, 1010));
    }

    #[test]
    fn the_queue_follows_the_rate_within_its_bounds() {
        let mut path = PathModel::new(ms(10));
        assert_eq!(path.queue_limit(), PATH_QUEUE_MIN);
        path.hint(ms(10), 10_000_000, ms(0));
        assert_eq!(path.queue_limit(), PATH_QUEUE_MAX);
    }
}
