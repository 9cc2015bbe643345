//! The rate limit: a bucket of tokens that fills with time.

use std::time::{Duration, Instant};

/// Allows a rate, with a second's worth of burst.
#[derive(Debug)]
pub(super) struct Bucket {
    per_s: u64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(per_s: u64, now: Instant) -> Bucket {
        Bucket { per_s, tokens: Self::most(per_s), filled: now }
    }

    fn most(per_s: u64) -> f64 {
        // Exact up to 2^53 per second, far above any disk.
        per_s as f64
    }

    fn fill(&mut self, now: Instant) {
        let most = Self::most(self.per_s);
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * most).min(most);
        self.filled = now;
    }

    /// How long until something may be taken; zero if now.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        if self.tokens > 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((1.0 - self.tokens) / Self::most(self.per_s))
    }

    /// Takes `amount`. It may leave a debt, so that a request larger than the burst is not refused for ever.
    pub(super) fn take(&mut self, amount: u64) {
        self.tokens -= amount as f64;
    }
}

/// Limits of one disk.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) requests: Option<Bucket>,
    pub(super) bytes: Option<Bucket>,
}

impl Limits {
    /// How long the guest must wait.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let buckets = [&mut self.requests, &mut self.bytes].into_iter().flatten();
        buckets.map(|bucket| bucket.wait(now)).max().unwrap_or_default()
    }

    /// Counts a request that moves `bytes`.
    pub(super) fn count(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_burst_then_the_rate() {
        let start = Instant::now();
        let mut limits = Limits { requests: Some(Bucket::new(100, start)), bytes: None };
        let mut done = 0;
        while limits.wait(start).is_zero() {
            limits.count(1);
            done += 1;
        }
        assert_eq!(done, 100);
        let wait = limits.wait(start);
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(10), "{wait:?}");
        assert!(limits.wait(start + wait).is_zero());
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_off() {
        let start = Instant::now();
        let mut limits = Limits { requests: None, bytes: Some(Bucket::new(1000, start)) };
        assert!(limits.wait(start).is_zero());
        limits.count(5000);
        assert!(limits.wait(start) >= Duration::from_secs(4));
        assert!(limits.wait(start + Duration::from_secs(5)).is_zero());
    }
}
