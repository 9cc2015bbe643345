//! How often epochs end: what a guest's speed is worth against its clients' waiting.
//!
//! An epoch ends when output waits, as soon as cuts have taken no more than their share of the guest's time, and otherwise after its
//! longest time. So the share and the shortest epoch decide how long output waits of a guest that writes much; the longest epoch,
//! what is lost of a guest that says nothing, and how many pages an epoch has.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A pace, within its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Pace {
    epoch_max_us: u32,
    epoch_min_us: u32,
    cut_share_pm: u32,
}

/// A pace that nobody can keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaceError {
    /// The longest epoch.
    #[error("the longest epoch must be from 1 ms to 10 s")]
    EpochMax,
    /// The shortest epoch.
    #[error("the shortest epoch must not be longer than the longest")]
    EpochMin,
    /// The share.
    #[error("cuts can have from 1 to 100 percent of the guest's time")]
    CutShare,
}

/// As it is in the record.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Written {
    epoch_max_us: u64,
    epoch_min_us: u64,
    cut_share_pm: u32,
}

impl Pace {
    /// As fast as the guest can be: its clients wait, in bursts for up to a tenth of a second.
    pub const PERFORMANCE: Self = Self::of(100_000, 2_000, 50);
    /// What there is unless something else is asked for.
    pub const BALANCED: Self = Self::of(25_000, 0, 100);
    /// Little to lose and little to wait for, at the guest's cost.
    pub const CONSISTENCY: Self = Self::of(10_000, 0, 500);
    /// The ones that have names.
    pub const PRESETS: [(&'static str, Self); 3] = [
        ("performance", Self::PERFORMANCE),
        ("balanced", Self::BALANCED),
        ("consistency", Self::CONSISTENCY),
    ];

    const fn of(epoch_max_us: u32, epoch_min_us: u32, cut_share_pm: u32) -> Self {
        Self { epoch_max_us, epoch_min_us, cut_share_pm }
    }

    /// A pace of its own: longest epoch, shortest epoch when output waits, and the share of the guest's time that cuts for the sake of
    /// waiting output may take, in thousandths.
    ///
    /// # Errors
    /// Which of them is out of bounds.
    pub fn new(epoch_max: Duration, epoch_min: Duration, cut_share_pm: u32) -> Result<Self, PaceError> {
        if !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&epoch_max) {
            Err(PaceError::EpochMax)
        } else if epoch_min > epoch_max {
            Err(PaceError::EpochMin)
        } else if !(10..=1000).contains(&cut_share_pm) {
            Err(PaceError::CutShare)
        } else {
            Ok(Self::of(micros(epoch_max), micros(epoch_min), cut_share_pm))
        }
    }

    /// Longest epoch.
    #[must_use]
    pub fn epoch_max(self) -> Duration {
        Duration::from_micros(self.epoch_max_us.into())
    }

    /// Shortest epoch, when output waits.
    #[must_use]
    pub fn epoch_min(self) -> Duration {
        Duration::from_micros(self.epoch_min_us.into())
    }

    /// Thousandths of the guest's time for cuts that output waits for.
    #[must_use]
    pub fn cut_share_pm(self) -> u32 {
        self.cut_share_pm
    }

    /// The preset of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::PRESETS.iter().find(|(known, _)| *known == name).map(|(_, pace)| *pace)
    }

    /// The preset's name, if it is one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::PRESETS.iter().find(|(_, pace)| *pace == self).map(|(name, _)| *name)
    }
}

impl TryFrom<Written> for Pace {
    type Error = PaceError;

    fn try_from(written: Written) -> Result<Self, PaceError> {
        let Written { epoch_max_us, epoch_min_us, cut_share_pm } = written;
        Self::new(Duration::from_micros(epoch_max_us), Duration::from_micros(epoch_min_us), cut_share_pm)
    }
}

impl From<Pace> for Written {
    fn from(pace: Pace) -> Self {
        let Pace { epoch_max_us, epoch_min_us, cut_share_pm } = pace;
        Self { epoch_max_us: epoch_max_us.into(), epoch_min_us: epoch_min_us.into(), cut_share_pm }
    }
}

/// Whole microseconds of a time within bounds.
pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_within_bounds_and_survive_the_record() {
        for (name, pace) in Pace::PRESETS {
            assert_eq!(Pace::new(pace.epoch_max(), pace.epoch_min(), pace.cut_share_pm), Ok(pace));
            assert_eq!((Pace::named(name), pace.name()), (Some(pace), Some(name)));
            assert_eq!(Pace::try_from(Written::from(pace)), Ok(pace));
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_from_the_record_too() {
        let ms = Duration::from_millis;
        assert_eq!(Pace::new(ms(0), ms(0), 100), Err(PaceError::EpochMax));
        assert_eq!(Pace::new(ms(10_001), ms(0), 100), Err(PaceError::EpochMax));
        assert_eq!(Pace::new(ms(5), ms(6), 100), Err(PaceError::EpochMin));
        assert_eq!(Pace::new(ms(5), ms(5), 1001), Err(PaceError::CutShare));
        let written = Written { epoch_max_us: 25_000, epoch_min_us: 0, cut_share_pm: 0 };
        assert_eq!(Pace::try_from(written), Err(PaceError::CutShare));
    }
}
