//! The countdown, kept by a timerfd that the device thread polls.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// What one count of the guest's value stands for.
const TICK: Duration = Duration::from_millis(100);

/// The device.
#[derive(Debug)]
pub(crate) struct Watchdog {
    timer: TimerFd,
    pub(super) countdown: Countdown,
}

/// Where the countdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Countdown {
    /// Not armed.
    Off,
    /// Runs out then.
    Until(Instant),
    /// Machine paused, this much left.
    Left(Duration),
}

impl Watchdog {
    /// Disarmed, on a paused machine.
    ///
    /// # Errors
    /// When the kernel grants no timer.
    pub(crate) fn new() -> io::Result<Watchdog> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Watchdog { timer, countdown: Countdown::Off })
    }

    /// For the device thread's poll set.
    pub(crate) fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// The guest feeds the watchdog, or disarms it. The register has 16 bits; what a wider access has beyond them is lost.
    pub(crate) fn write(&mut self, data: &[u8]) {
        let count = data.iter().take(2).rev().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        self.set(match count {
            0 => Countdown::Off,
            n => Countdown::Until(Instant::now() + TICK * n),
        });
    }

    /// The device thread saw the timer fire; true if the guest is overdue (it may just have fed us).
    pub(crate) fn fired(&mut self) -> bool {
        match self.countdown {
            Countdown::Until(then) if then <= Instant::now() => {
                self.set(Countdown::Off);
                true
            }
            Countdown::Off | Countdown::Until(_) | Countdown::Left(_) => {
                self.set(self.countdown);
                false
            }
        }
    }

    /// Stands still.
    pub(crate) fn pause(&mut self) {
        if let Countdown::Until(then) = self.countdown {
            self.set(Countdown::Left(then.saturating_duration_since(Instant::now())));
        }
    }

    /// Goes on.
    pub(crate) fn resume(&mut self) {
        if let Countdown::Left(left) = self.countdown {
            self.set(Countdown::Until(Instant::now() + left));
        }
    }

    pub(super) fn set(&mut self, countdown: Countdown) {
        self.countdown = countdown;
        let armed = match countdown {
            // A zero timeout would mean "never".
            Countdown::Until(then) => {
                let left = then.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
                self.timer.reset(left, None)
            }
            Countdown::Off | Countdown::Left(_) => self.timer.clear(),
        };
        if let Err(error) = armed {
            tracing::error!(%error, "the watchdog's timer cannot be set; it will not fire");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pausing_keeps_what_is_left() {
        let mut watchdog = Watchdog::new().unwrap();
        watchdog.write(&[5, 0]);
        assert!(!watchdog.fired(), "not yet");
        watchdog.pause();
        let Countdown::Left(left) = watchdog.countdown else { panic!("armed and paused") };
        assert!(left <= TICK * 5);
        watchdog.resume();
        assert!(matches!(watchdog.countdown, Countdown::Until(_)));
        watchdog.write(&[0]);
        assert_eq!(watchdog.countdown, Countdown::Off);
    }

    #[test]
    fn a_countdown_written_wide_is_one_that_can_be_restored() {
        let mut watchdog = Watchdog::new().unwrap();
        watchdog.write(&[0xff; 4]);
        watchdog.pause();
        let Countdown::Left(left) = watchdog.countdown else { panic!("armed and paused") };
        assert!(left <= TICK * 0xffff, "{left:?}");
    }

    #[test]
    fn an_overdue_guest_is_reported_once() {
        let mut watchdog = Watchdog::new().unwrap();
        watchdog.set(Countdown::Until(Instant::now()));
        assert!(watchdog.fired());
        assert!(!watchdog.fired());
    }
}
