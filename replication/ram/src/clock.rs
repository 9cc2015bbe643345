//! This machine's clock, and what can be said about a peer's.

use std::time::Duration;

use mycelium_ram_core::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now, on CLOCK_BOOTTIME: it goes on while the machine sleeps, so that what was allowed before is over when it wakes.
#[must_use]
pub fn now() -> Time {
    nanos(ClockId::Boottime)
}

/// Now, on CLOCK_REALTIME (nanoseconds since 1970), for logs.
#[must_use]
pub fn wall() -> Time {
    nanos(ClockId::Realtime)
}

fn nanos(clock: ClockId) -> Time {
    let t = clock_gettime(clock);
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    Time(seconds * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0))
}

/// What was heard longer ago than this, and at most twice this, says nothing about clocks any more: two crystals part by
/// up to some tenths of a millisecond a second.
const WINDOW: Duration = Duration::from_secs(5);

/// Bounds on the difference between a peer's clock and ours, from its heartbeats.
///
/// A heartbeat stamped `s` there and heard at `h` here says `h - s = difference + transit`. The smallest `h - s` seen is
/// the difference plus the shortest transit; the shortest round trip of the same time bounds that transit from above.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerClock {
    now: Window,
    before: Window,
    since: Time,
}

/// What was heard in one window of time.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    least: Option<i128>,
    round_trip: Option<Duration>,
}

impl Window {
    fn elapsed_since(&self, then: Time, now: Time) -> Option<Duration> {
        let passed = i128::from(now.0) - i128::from(then.0) - self.least?;
        let passed = Duration::from_nanos(u64::try_from(passed.max(0)).unwrap_or(u64::MAX));
        Some(passed + self.round_trip.unwrap_or_default())
    }
}

impl PeerClock {
    /// A heartbeat stamped `sent_at` by the peer was heard at `heard_at`; `echo` is our newest stamp it had seen.
    pub fn heard(&mut self, heard_at: Time, sent_at: Time, echo: Option<Time>) {
        if heard_at.since(self.since) > WINDOW {
            self.before = std::mem::take(&mut self.now);
            self.since = heard_at;
        }
        let lag = i128::from(heard_at.0) - i128::from(sent_at.0);
        self.now.least = Some(self.now.least.map_or(lag, |least| least.min(lag)));
        if let Some(echo) = echo {
            let trip = heard_at.since(echo);
            self.now.round_trip = Some(self.now.round_trip.map_or(trip, |t| t.min(trip)));
        }
    }

    /// Time from the peer's stamp `then` to our `now`: at least the real time that has passed, and too long by at most
    /// the shortest round trip. None before the first heartbeat.
    #[must_use]
    pub fn elapsed_since(&self, then: Time, now: Time) -> Option<Duration> {
        // Each window's word is never too short: the shorter one is nearer.
        [self.now, self.before].iter().filter_map(|window| window.elapsed_since(then, now)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_is_at_least_the_real_time_whatever_the_clocks_say() {
        // The peer's clock is 1 hour ahead; transit is 2 ms there, 3 ms back.
        let hour = 3_600_000u64;
        let mut clock = PeerClock::default();
        for ms in (1000..1100).step_by(10) {
            let (sent, heard) = (Time::from_ms(ms + hour), Time::from_ms(ms + 2));
            clock.heard(heard, sent, Some(Time::from_ms(ms - 3)));
        }
        let elapsed = clock.elapsed_since(Time::from_ms(1090 + hour), Time::from_ms(1200)).unwrap();
        assert!(elapsed >= Duration::from_millis(110), "{elapsed:?}");
        assert!(elapsed <= Duration::from_millis(115), "{elapsed:?}");
    }

    #[test]
    fn clocks_that_drift_apart_for_a_day_do_not_add_up() {
        // Our clock gains 100 us a second on the peer's; transit is 1 ms each way.
        let ours = |peer: Time| Time(peer.0 + peer.0 / 10_000);
        let mut clock = PeerClock::default();
        let day = 86_400;
        for second in 1..=day {
            let sent = Time::from_ms(second * 1000);
            let heard = ours(sent) + Duration::from_millis(1);
            clock.heard(heard, sent, Some(heard - Duration::from_millis(2)));
        }
        let cut = Time::from_ms(day * 1000);
        let elapsed = clock.elapsed_since(cut, ours(cut + Duration::from_millis(100))).unwrap();
        assert!(elapsed >= Duration::from_millis(100), "{elapsed:?}");
        assert!(elapsed <= Duration::from_millis(105), "{elapsed:?}");
    }
}
