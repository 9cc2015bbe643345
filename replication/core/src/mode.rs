//! When output may leave: once its epoch has committed, or before.
//!
//! In `sync`, output waits for its epoch, and a takeover loses nothing of which anybody has heard. In `async` it leaves at
//! once, and a takeover may lose the newest moments: what had left and was not committed is the *exposure*, which is bounded.
//!
//! Nothing that waits for a commit can leave behind the back of a replica that has fallen silent; what does not wait could. So
//! in `async` the active speaks on *leases*. It stamps its heartbeats; a replica's echo of a stamp lets it speak until that
//! stamp is one lease length old, by its own clock. A replica that wants to take over gives no more echoes, and waits until the
//! newest stamp it may have echoed is older than that by its clock. How sure that is stands in
//! `docs/decisions/0021-async-and-its-lease.md`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pace::micros;

/// Whether output waits for its epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It does.
    #[default]
    Sync,
    /// It does not, within a lease and a bound on what may be lost.
    Async(Lease),
}

/// For how long an active may speak on a replica's word, and how much may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Lease {
    length_us: u32,
    exposure_us: u32,
}

/// A lease nobody could keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Its length.
    #[error("a lease must be from 20 ms to 10 s long")]
    Length,
    /// The bound on the exposure.
    #[error("the exposure must be from 20 ms to 60 s")]
    Exposure,
}

/// As it is in the record.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Written {
    lease_us: u64,
    exposure_us: u64,
}

impl Lease {
    /// Shorter than the detector's shortest silence, so that waiting for its end costs a takeover next to nothing.
    pub const DEFAULT: Self = Self { length_us: 50_000, exposure_us: 1_000_000 };

    /// By how much the clocks of two hosts may part, in millionths: crystals by 200, and each is slewed by 500 at most.
    const DRIFT_PPM: u32 = 2_000;

    /// Longest time from the look at the clock until a frame has left.
    pub const CHECK_TO_SEND: Duration = Duration::from_millis(10);

    /// A lease of this length that bounds what may be lost to what the guest did in `exposure`.
    ///
    /// # Errors
    /// Which of them is out of bounds.
    pub fn new(length: Duration, exposure: Duration) -> Result<Self, LeaseError> {
        let least = Duration::from_millis(20);
        if !(least..=Duration::from_secs(10)).contains(&length) {
            Err(LeaseError::Length)
        } else if !(least..=Duration::from_secs(60)).contains(&exposure) {
            Err(LeaseError::Exposure)
        } else {
            Ok(Self { length_us: micros(length), exposure_us: micros(exposure) })
        }
    }

    /// For how long an echo lets the active speak, from the stamp that it echoes.
    #[must_use]
    pub fn length(self) -> Duration {
        Duration::from_micros(self.length_us.into())
    }

    /// Output that nobody has committed leaves only while no more than this would be lost.
    #[must_use]
    pub fn exposure(self) -> Duration {
        Duration::from_micros(self.exposure_us.into())
    }

    /// How long a replica waits, from when it learnt of the newest stamp it may have echoed, until the active is sure to be
    /// silent.
    #[must_use]
    pub fn outwaited(self) -> Duration {
        self.length() + self.length() * Self::DRIFT_PPM / 1_000_000 + Self::CHECK_TO_SEND
    }
}

impl TryFrom<Written> for Lease {
    type Error = LeaseError;

    fn try_from(Written { lease_us, exposure_us }: Written) -> Result<Self, LeaseError> {
        Self::new(Duration::from_micros(lease_us), Duration::from_micros(exposure_us))
    }
}

impl From<Lease> for Written {
    fn from(lease: Lease) -> Self {
        Self { lease_us: lease.length_us.into(), exposure_us: lease.exposure_us.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_out_of_bounds_is_refused_from_the_record_too() {
        assert_eq!(Lease::new(MS * 50, Duration::from_secs(1)), Ok(Lease::DEFAULT));
        assert_eq!(Lease::new(MS * 19, MS * 100), Err(LeaseError::Length));
        assert_eq!(Lease::new(MS * 50, MS * 60_001), Err(LeaseError::Exposure));
        assert_eq!(Lease::try_from(Written::from(Lease::DEFAULT)), Ok(Lease::DEFAULT));
        assert_eq!(Lease::try_from(Written { lease_us: 0, exposure_us: 50_000 }), Err(LeaseError::Length));
    }

    #[test]
    fn a_replica_waits_longer_than_the_slowest_clock_makes_of_a_lease() {
        let lease = Lease::new(Duration::from_secs(10), Duration::from_secs(1)).unwrap();
        let slow = Duration::from_secs_f64(10.0 * (1.0 + 700e-6) / (1.0 - 700e-6));
        assert!(lease.outwaited() >= slow + Lease::CHECK_TO_SEND);
    }
}
