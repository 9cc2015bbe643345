//! Petting the VMM's watchdog: a device that acts unless it is told again in time that the guest lives.

use crate::port::Port;

// SAFETY: the watchdog's register counts time on the VMM's side; it reaches no memory.
const REGISTER: Port = unsafe { Port::new(0x510) };

/// Pets per watchdog period: enough that one late pet is no alarm.
const PETS_PER_PERIOD: u64 = 4;

/// An armed watchdog.
pub(crate) struct Watchdog {
    tenths: u8,
    interval_ns: u64,
    next_ns: u64,
}

impl Watchdog {
    /// A watchdog that expires `seconds` (1 to 25) after the last pet; the first comes with the first call of
    /// [`pet`](Self::pet).
    pub(crate) fn new(seconds: u8) -> Self {
        let interval_ns = u64::from(seconds) * 1_000_000_000 / PETS_PER_PERIOD;
        Self { tenths: seconds.saturating_mul(10), interval_ns, next_ns: 0 }
    }

    /// Pets it if it is time to, and says when it will be again.
    pub(crate) fn pet(&mut self, now_ns: u64) -> u64 {
        if now_ns >= self.next_ns {
            REGISTER.write_u8(self.tenths);
            self.next_ns = now_ns + self.interval_ns;
        }
        self.next_ns
    }
}
