//! What the epoch thread observes of the guest and of the link, to act by it.

use std::time::Duration;

use mycelium_ram_core::Time;

/// Time without a frame that says nothing about what sending waits for.
const IDLE: Duration = Duration::from_millis(20);

/// How busy the guest is: a pause takes nothing from one that waits.
#[derive(Debug, Default)]
pub(crate) struct Load {
    before: Option<(Duration, Time)>,
}

impl Load {
    /// Share of the time since the last call that the guest has used, 0 to 1, given the processor time its vCPUs have used in all.
    pub(crate) fn share(&mut self, busy: Duration, now: Time) -> f64 {
        let Some((busy_before, at)) = self.before.replace((busy, now)) else { return 1.0 };
        let used = busy.saturating_sub(busy_before).as_secs_f64();
        let passed = now.since(at).as_secs_f64();
        if passed > 0.0 { (used / passed).min(1.0) } else { 1.0 }
    }
}

/// What sending waits for: the link, or this thread.
#[derive(Debug, Default)]
pub(crate) struct Bottleneck {
    /// When the last frame was handed over.
    last: Option<Time>,
    /// Share of the time that frames waited for room, lately.
    waiting: f64,
    link: bool,
}

impl Bottleneck {
    /// Of a frame: when it was ready, and when the link had taken it.
    pub(crate) fn sent(&mut self, ready: Time, taken: Time) {
        let worked = self.last.replace(taken).map_or(Duration::ZERO, |last| ready.since(last)).min(IDLE);
        let waited = taken.since(ready);
        let whole = (waited + worked).as_secs_f64();
        if whole > 0.0 {
            self.waiting = 0.9 * self.waiting + 0.1 * waited.as_secs_f64() / whole;
        }
        // It takes more to change its mind than to keep it.
        self.link = self.waiting > if self.link { 0.1 } else { 0.4 };
    }

    /// Whether it is the link.
    pub(crate) fn is_link(&self) -> bool {
        self.link
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn load_is_the_share_of_the_time_since_the_last_call() {
        let mut load = Load::default();
        let at = Time::from_ms;
        assert!((load.share(MS * 7, at(100)) - 1.0).abs() < 1e-9, "unknown is busy");
        assert!((load.share(MS * 9, at(110)) - 0.2).abs() < 1e-9);
        assert!((load.share(MS * 49, at(130)) - 1.0).abs() < 1e-9, "two busy vCPUs are one busy guest");
    }

    #[test]
    fn frames_that_wait_for_room_show_the_link_as_the_bottleneck() {
        let mut bottleneck = Bottleneck::default();
        let mut now = Time::from_ms(5);
        let mut send = |bottleneck: &mut Bottleneck, worked, waited| {
            let ready = now + worked;
            now = ready + waited;
            bottleneck.sent(ready, now);
        };
        (0..50).for_each(|_| send(&mut bottleneck, MS * 4, MS));
        assert!(!bottleneck.is_link());
        (0..50).for_each(|_| send(&mut bottleneck, MS, MS * 4));
        assert!(bottleneck.is_link());
        (0..50).for_each(|_| send(&mut bottleneck, MS * 4, MS));
        assert!(bottleneck.is_link(), "packing makes it wait less: no reason to stop packing");
        (0..50).for_each(|_| send(&mut bottleneck, MS * 40, MS));
        assert!(!bottleneck.is_link());
    }
}
