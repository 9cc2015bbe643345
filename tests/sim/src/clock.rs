//! Each node's own clock: it starts anywhere and runs a little fast or slow, so that comparing stamps of two nodes shows.

use mycelium_ram_core::Time;

use crate::rng::Rng;

/// One millisecond in nanoseconds of simulated time.
pub const MS: u64 = 1_000_000;
/// One microsecond in nanoseconds of simulated time.
pub const US: u64 = 1_000;

/// A node's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    fast_ppm: u64,
}

impl Clock {
    /// A clock up to weeks away from any other and up to 200 ppm fast.
    pub fn random(rng: &mut Rng) -> Self {
        Self { offset: rng.below(1 << 51), fast_ppm: rng.below(200) }
    }

    /// What it shows at a true time.
    #[must_use]
    pub fn read(&self, now: u64) -> Time {
        Time(self.offset + now + now / 1_000 * self.fast_ppm / 1_000)
    }
}
