//! Rate limits of disks and cards: buckets of tokens that fill with time, and the timer that tells when to go on.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// Limits of one device or direction, and who wakes it.
pub(crate) struct Limiter {
    limits: Limits,
    timer: TimerFd,
}

impl Limiter {
    /// Allows `per_s` things and `bytes_per_s` bytes a second, each with a second's worth of burst.
    ///
    /// # Errors
    /// When the kernel grants no timer.
    pub(crate) fn new(per_s: Option<u64>, bytes_per_s: Option<u64>) -> io::Result<Limiter> {
        let now = Instant::now();
        let bucket = |rate: Option<u64>| rate.map(|per_s| Bucket::new(per_s, now));
        let limits = Limits { things: bucket(per_s), bytes: bucket(bytes_per_s) };
        Ok(Limiter { limits, timer: TimerFd::new()? })
    }

    /// Whether the guest must wait. The timer then fires when it need not any longer.
    pub(crate) fn holds(&mut self) -> bool {
        if self.limits.is_none() {
            return false;
        }
        let wait = self.limits.wait(Instant::now());
        if wait.is_zero() {
            return false;
        }
        if let Err(error) = self.timer.reset(wait, None) {
            tracing::error!(%error, "a timer cannot be set; a rate limit may hold the guest");
        }
        true
    }

    /// Counts a thing that moves `bytes`.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.limits.count(bytes);
    }
}

impl AsRawFd for Limiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

/// Allows a rate, with a second's worth of burst.
#[derive(Debug)]
struct Bucket {
    per_s: u64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(per_s: u64, now: Instant) -> Bucket {
        Bucket { per_s, tokens: Self::most(per_s), filled: now }
    }

    fn most(per_s: u64) -> f64 {
        // Exact up to 2^53 per second, far above any disk or card.
        per_s as f64
    }

    fn fill(&mut self, now: Instant) {
        let most = Self::most(self.per_s);
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * most).min(most);
        self.filled = now;
    }

    /// How long until something may be taken; zero if now.
    fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        if self.tokens > 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((1.0 - self.tokens) / Self::most(self.per_s))
    }

    /// Takes `amount`. It may leave a debt, so that a request larger than the burst is not refused for ever.
    fn take(&mut self, amount: u64) {
        self.tokens -= amount as f64;
    }
}

#[derive(Debug, Default)]
struct Limits {
    /// Requests or frames.
    things: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limits {
    fn is_none(&self) -> bool {
        self.things.is_none() && self.bytes.is_none()
    }

    /// How long the guest must wait.
    fn wait(&mut self, now: Instant) -> Duration {
        let buckets = [&mut self.things, &mut self.bytes].into_iter().flatten();
        buckets.map(|bucket| bucket.wait(now)).max().unwrap_or_default()
    }

    /// Counts a thing that moves `bytes`.
    fn count(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.things {
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
        let mut limits = Limits { things: Some(Bucket::new(100, start)), bytes: None };
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
        let mut limits = Limits { things: None, bytes: Some(Bucket::new(1000, start)) };
        assert!(limits.wait(start).is_zero());
        limits.count(5000);
        assert!(limits.wait(start) >= Duration::from_secs(4));
        assert!(limits.wait(start + Duration::from_secs(5)).is_zero());
    }
}
