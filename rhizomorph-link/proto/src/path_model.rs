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

/// Load, rate and delay of one path. Times are since any fixed start, rates in bytes a second.
#[derive(Clone, Debug)]
pub struct PathModel {
    in_flight: [u64; 2],
    rtt: Duration,
    hint: f64,
    measured: Option<f64>,
    sample_start: Option<Duration>,
    sample_bytes: u64,
}

impl PathModel {
    /// A fresh path of this round-trip time.
    pub fn new(rtt: Duration) -> Self {
        Self {
            in_flight: [0; 2],
            rtt,
            hint: RATE_UNKNOWN,
            measured: None,
            sample_start: None,
            sample_bytes: 0,
        }
    }

    /// What the transport knows: its round-trip time, and its congestion window in bytes, from which a rate is
    /// guessed until one is measured.
    pub fn hint(&mut self, rtt: Duration, cwnd: u64) {
        self.rtt = rtt;
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
        if self.in_flight() == 0 {
            self.sample_start = Some(now);
            self.sample_bytes = 0;
        }
        self.in_flight[priority.index()] += bytes;
    }

    /// `bytes` of that class arrived.
    pub fn delivered(&mut self, priority: Priority, bytes: u64, now: Duration) {
        self.sample_bytes += bytes;
        self.taken_back(priority, bytes);
        self.measure(now);
    }

    /// `bytes` of that class left the path without arriving: recalled, or no longer needed.
    pub fn taken_back(&mut self, priority: Priority, bytes: u64) {
        let class = &mut self.in_flight[priority.index()];
        *class = class.saturating_sub(bytes);
    }

    fn measure(&mut self, now: Duration) {
        let Some(start) = self.sample_start else { return };
        let span = now.saturating_sub(start);
        let busy = self.in_flight() > 0;
        if span >= SAMPLE_MIN.max(self.rtt) {
            self.learn(as_f64(self.sample_bytes) / span.as_secs_f64());
            self.sample_start = busy.then_some(now);
            self.sample_bytes = 0;
        } else if !busy {
            self.sample_start = None;
        }
    }

    fn learn(&mut self, sample: f64) {
        self.measured = Some(match self.measured {
            // Half weight: a changed path is known after a few round trips, one hiccup does not move everything.
            Some(old) => old.midpoint(sample),
            None => sample,
        });
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

    #[test]
    fn learns_the_rate_while_busy_and_not_from_idle_time() {
        let mut path = PathModel::new(ms(1));
        path.sent(Priority::Bulk, 200_000, ms(0));
        path.delivered(Priority::Bulk, 100_000, ms(10));
        assert!((path.rate() - 1e7).abs() < 1e3);
        path.delivered(Priority::Bulk, 100_000, ms(12));
        path.sent(Priority::Bulk, 100_000, ms(5_000));
        path.delivered(Priority::Bulk, 100_000, ms(5_010));
        assert!((path.rate() - 1e7).abs() < 1e3);
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
        path.hint(ms(10), 10_000_000);
        assert_eq!(path.queue_limit(), PATH_QUEUE_MAX);
    }
}
