//! The wall clock, replaceable by tests.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the wall-clock time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The machine's.
    #[must_use]
    pub fn system() -> Self {
        Self::from_fn(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
    }

    /// Asks `wall_ns` for nanoseconds since 1970.
    pub fn from_fn(wall_ns: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(wall_ns))
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub fn wall_ns(&self) -> u64 {
        (self.0)()
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix_s(&self) -> u64 {
        self.wall_ns() / 1_000_000_000
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.wall_ns())
    }
}

/// Why a clock that reads `theirs_ns` is too far from ours, if it is: which way, how much, and what to do.
pub(crate) fn too_far(theirs_ns: u64, ours_ns: u64) -> Option<String> {
    let apart = theirs_ns.abs_diff(ours_ns);
    let way = if theirs_ns > ours_ns { "ahead of" } else { "behind" };
    (apart > crate::limits::CLOCK_SKEW_NS).then(|| {
        let (by, most) = (apart / 1_000_000_000, crate::limits::CLOCK_SKEW_NS / 1_000_000_000);
        format!(
            "the joining machine's clock is {by} s {way} this network's; at most {most} s are tolerated, because guests keep \
             time when they move: set it by NTP (for example `timedatectl set-ntp true`) and join again"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_too_far_off_is_told_which_way_and_how_much() {
        let (now, hour) = (1_800_000_000_000_000_000, 3_600_000_000_000);
        assert!(too_far(now + hour, now).unwrap().contains("3600 s ahead of"));
        assert!(too_far(now - hour, now).unwrap().contains("3600 s behind"));
        assert_eq!(too_far(now + 29_000_000_000, now), None);
    }
}
