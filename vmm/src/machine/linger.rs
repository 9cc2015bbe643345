//! Looking for events a little longer before going to sleep.
//!
//! With one request under way, a disk's thread sleeps and wakes twice per request, and a wake-up takes longer than the guest
//! takes to ask again. What comes next depends on what came last: a driver that got its answer asks again at once, while a request's
//! answer takes as long as the disk does. So the time that is worth waiting is learnt for each of the two.

use std::time::{Duration, Instant};

/// Longest time spent awake for nothing, per event.
const LONGEST: Duration = Duration::from_micros(32);
/// Where learning begins.
const SHORTEST: Duration = Duration::from_micros(4);

/// What was handled last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Doorbell = 0,
    Ready = 1,
}

/// How long to look.
#[derive(Debug, Default)]
pub(super) struct Linger {
    windows: [Duration; 2],
}

impl Linger {
    /// Calls `look` until it returns something, and at last `sleep`.
    pub(super) fn wait<T>(
        &mut self,
        last: Last,
        mut look: impl FnMut() -> Option<T>,
        sleep: impl FnOnce() -> T,
    ) -> T {
        let window = self.windows[last as usize];
        let begun = Instant::now();
        while !window.is_zero() {
            if let Some(found) = look() {
                return found;
            }
            if begun.elapsed() >= window {
                break;
            }
            std::hint::spin_loop();
        }
        let found = sleep();
        self.learn(last, begun.elapsed());
        found
    }

    /// It took `waited` after all.
    fn learn(&mut self, last: Last, waited: Duration) {
        let window = &mut self.windows[last as usize];
        *window = if waited > LONGEST { Duration::ZERO } else { (*window * 2).clamp(SHORTEST, LONGEST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_soon_is_waited_for_and_what_does_not_is_slept_for() {
        let mut linger = Linger::default();
        for _ in 0..8 {
            linger.learn(Last::Ready, Duration::from_micros(20));
            linger.learn(Last::Doorbell, Duration::from_micros(120));
        }
        assert_eq!(linger.windows, [Duration::ZERO, LONGEST]);
        assert_eq!(linger.wait(Last::Ready, || Some(1), || 2), 1);
        assert_eq!(linger.wait(Last::Doorbell, || Some(1), || 2), 2, "no look without a window");
        linger.learn(Last::Ready, Duration::from_millis(1));
        assert_eq!(linger.windows[1], Duration::ZERO);
    }
}
