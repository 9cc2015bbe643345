//! What the active knows of one replica.

use std::time::Duration;

use crate::detector::Detector;
use crate::ids::{EpochId, Member};
use crate::sabotage::{Sabotage, sabotaged};
use crate::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Seeding,
    Joining { need: EpochId },
    Listing,
    InSync,
    Lost,
    Leaving,
}

impl Standing {
    /// Whether output must wait for the replica.
    pub(super) fn is_required(self) -> bool {
        self != Self::Seeding
    }

    /// Whether the replica is expected to take and acknowledge epochs.
    pub(super) fn is_live(self) -> bool {
        !matches!(self, Self::Lost | Self::Leaving)
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) member: Member,
    pub(super) standing: Standing,
    /// The operator wants it no more.
    pub(super) dismissed: bool,
    /// The epoch that carries its seed.
    pub(super) first: EpochId,
    pub(super) acked: Option<EpochId>,
    /// With this epoch it has all it lacked: pages come with the seed, disks take longer.
    pub(super) filled: Option<EpochId>,
    /// Epochs up to this one are not on their way to it: they came to nothing, or were never sent while nobody waited for it.
    pub(super) void: EpochId,
    /// My newest stamp it has seen.
    pub(super) echo: Option<Time>,
    pub(super) echo_heard_at: Time,
    pub(super) round_trip: RoundTrip,
    pub(super) joined_at: Time,
    /// Its newest stamp I have seen.
    pub(super) stamp: Option<Time>,
    pub(super) detector: Detector,
}

/// About the round trip to a replica: the shortest time in which a stamp came back while this process was running.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundTrip {
    shortest: Option<Duration>,
    pub(super) stamps: u32,
}

impl RoundTrip {
    /// One stamp may have lain at the replica for any time; of so many, the quickest has not.
    pub(super) const STAMPS_MIN: u32 = 8;

    pub(super) fn add(&mut self, age: Duration) {
        self.stamps = self.stamps.saturating_add(1);
        self.shortest = Some(self.shortest.map_or(age, |shortest| shortest.min(age)));
    }

    /// Zero while nothing can be said.
    pub(super) fn known(self) -> Duration {
        self.shortest.filter(|_| self.stamps >= Self::STAMPS_MIN).unwrap_or_default()
    }
}

impl Peer {
    pub(super) fn holds(&self, epoch: EpochId) -> bool {
        self.acked.is_some_and(|a| a >= epoch)
    }

    /// Whether it holds all it lacked when it joined.
    pub(super) fn is_filled(&self) -> bool {
        self.filled.is_some_and(|epoch| self.holds(epoch))
            || sabotaged(Sabotage::ListedBeforeFilled) && self.acked.is_some()
    }

    /// Whether the guest can be handed to it.
    pub(super) fn may_be_yielded_to(&self) -> bool {
        self.standing == Standing::InSync && !self.dismissed
    }

    /// The newest epoch it acknowledged, or the one before its seed.
    pub(super) fn acked_or_before(&self) -> EpochId {
        self.acked.unwrap_or_else(|| self.first.prev())
    }

    /// Whether the pace follows it. While the record is slow to let a dismissed one go, output goes on with its word.
    pub(super) fn sets_pace(&self) -> bool {
        self.standing.is_live() || self.dismissed && self.detector.suspicion().is_none()
    }

    /// The newest epoch behind which nothing is on its way.
    pub(super) fn settled(&self) -> EpochId {
        self.acked_or_before().max(self.void)
    }

    /// Whether its word is young enough to release on. On long paths an echo is never younger than the round trip.
    pub(super) fn is_fresh(&self, now: Time, fresh: Duration) -> bool {
        let limit = fresh.max(self.round_trip.known() * 2);
        self.echo.is_some_and(|echo| now.since(echo) <= limit) || sabotaged(Sabotage::StaleAckHonoured)
    }
}
