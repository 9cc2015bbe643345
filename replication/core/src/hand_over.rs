//! A planned handover: the active stops its guest at the end of an epoch, and asks a replica that holds it to go on from there.
//!
//! ```text
//!            guest stopped, epoch cut        all hold it, its output has left         record of a later generation
//!   Stopping ─────────────────────> Settling ─────────────────────────────> Yielding ─────────────────────────────> (over)
//!       │                              │                                       │
//!       └──────────────────────────────┴──── the replica is lost, or too late ─┘──> the guest goes on here
//! ```
//! Nothing new has to be safe: the replica takes over as if it had lost the active, by a swap of the record, and an active that goes
//! on because it was too late is one whose replica suspects it. What is planned about it is that nobody waits for a silence, that
//! nothing is under way, and that the guest stands still in between.

use std::time::Duration;

use crate::ids::{EpochId, Member, NodeId};
use crate::time::Time;

/// Why a guest was not handed over. It runs on where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHandedOver {
    /// There is nobody to hand it to.
    #[error("no replica in sync could go on with it; wait until the VM is protected")]
    NoReplica,
    /// This one cannot.
    #[error("node {0} holds no replica in sync; wait until it does, or hand over to another one")]
    NotInSync(NodeId),
    /// One is under way.
    #[error("it is being handed over already")]
    UnderWay,
    /// It is about to end.
    #[error("the VM is being ended")]
    Ending,
    /// The replica fell silent.
    #[error("the replica {0} fell silent while it was to take over; the guest goes on here")]
    Lost(Member),
    /// It took too long.
    #[error("the replica {member} had not taken over after {} ms; the guest goes on here", patience.as_millis())]
    TooLate {
        /// The replica.
        member: Member,
        /// How long the guest stood still for it.
        patience: Duration,
    },
}

/// One under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandOver {
    pub(crate) to: Member,
    begun: Time,
    patience: Duration,
    /// The epoch at whose end the guest stands, once it has been ordered.
    last: Option<EpochId>,
    yielding: bool,
}

impl HandOver {
    pub(crate) fn begin(to: Member, now: Time, patience: Duration) -> Self {
        Self { to, begun: now, patience, last: None, yielding: false }
    }

    /// Whether the epoch in which the guest was stopped has still to be ended.
    pub(crate) fn wants_cut(&self) -> bool {
        self.last.is_none()
    }

    /// With the guest stopped, the end of this epoch is ordered.
    pub(crate) fn ends_with(&mut self, epoch: EpochId) {
        self.last = Some(epoch);
    }

    /// The cut failed; another one is wanted.
    pub(crate) fn cut_failed(&mut self) {
        self.last = None;
    }

    /// Everything up to `released` has left. Returns the epoch to yield at, when that has become possible just now.
    pub(crate) fn settled(&mut self, released: EpochId) -> Option<EpochId> {
        let last = self.last.filter(|last| released >= *last && !self.yielding)?;
        self.yielding = true;
        Some(last)
    }

    /// The epoch to yield at, while that is what is waited for.
    pub(crate) fn yields(&self) -> Option<EpochId> {
        self.last.filter(|_| self.yielding)
    }

    /// When it must be done.
    pub(crate) fn due(&self) -> Time {
        self.begun + self.patience
    }

    /// Why it has failed by now, if it has.
    pub(crate) fn failed(&self, now: Time, is_in_sync: bool) -> Option<NotHandedOver> {
        if now >= self.due() {
            Some(NotHandedOver::TooLate { member: self.to, patience: self.patience })
        } else if !is_in_sync {
            Some(NotHandedOver::Lost(self.to))
        } else {
            None
        }
    }
}
