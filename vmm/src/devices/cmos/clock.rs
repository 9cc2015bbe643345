//! The clock with its interrupt: a timer that the device thread polls, set only while the guest wants to hear of alarms
//! or seconds. Linux does when somebody runs `hwclock`, which otherwise waits ten seconds for a tick.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::device::Cmos;
use crate::irq;

/// The device.
#[derive(Debug)]
pub(crate) struct Clock {
    pub(super) cmos: Cmos,
    timer: TimerFd,
    line: EventFd,
    running: bool,
    armed: bool,
}

impl Clock {
    /// The clock at power-on, on a paused machine; `line` is its interrupt.
    ///
    /// # Errors
    /// When the kernel grants no timer.
    pub(crate) fn new(line: EventFd) -> io::Result<Clock> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Clock { cmos: Cmos::new(), timer, line, running: false, armed: false })
    }

    /// For the device thread's poll set.
    pub(crate) fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Reads port 0 or 1.
    pub(crate) fn read(&mut self, port: u16) -> u8 {
        self.cmos.read(port, SystemTime::now())
    }

    /// Writes port 0 or 1.
    pub(crate) fn write(&mut self, port: u16, value: u8) {
        self.cmos.write(port, value, SystemTime::now());
        self.follow();
    }

    /// The device thread saw the timer fire.
    pub(crate) fn fired(&mut self) {
        if self.running && self.cmos.tick(SystemTime::now()) {
            irq::raise(&self.line);
        }
        self.armed = false;
        self.follow();
    }

    /// Stands still.
    pub(crate) fn pause(&mut self) {
        self.running = false;
        self.follow();
    }

    /// Goes on.
    pub(crate) fn resume(&mut self) {
        self.running = true;
        self.follow();
    }

    /// Seconds the guest set its clock ahead of the host's. A battery keeps that over a reset.
    pub(crate) fn offset_s(&self) -> i64 {
        self.cmos.offset_s
    }

    /// Sets it.
    pub(crate) fn set_offset_s(&mut self, offset_s: i64) {
        self.cmos.offset_s = offset_s;
    }

    /// Sets the timer for the next second, if it is wanted.
    fn follow(&mut self) {
        let wanted = self.running && self.cmos.ticks();
        if wanted == self.armed {
            return;
        }
        let now = SystemTime::now();
        let into_second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
        let set = if wanted {
            self.timer.reset(Duration::from_secs(1) - Duration::from_nanos(u64::from(into_second)), None)
        } else {
            self.timer.clear()
        };
        match set {
            Ok(()) => self.armed = wanted,
            Err(error) => tracing::error!(%error, "the clock's timer cannot be set; alarms are missed"),
        }
    }
}
