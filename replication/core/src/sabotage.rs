//! Deliberate faults in the protocol, compiled in only with the feature `sabotage`. They exist to prove that the
//! simulator and the system checks would notice each of these mistakes.

macro_rules! sabotages {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A mistake that can be switched on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Sabotage {
            $($(#[$doc])* $name,)*
        }

        impl Sabotage {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name used on command lines.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

sabotages! {
    /// The primary releases an epoch as soon as it is sealed.
    ReleaseBeforeCommit = "release-before-commit",
    /// The replica acknowledges an epoch whose parts have not all arrived.
    AckBeforeStaged = "ack-before-staged",
    /// An aborted epoch forgets its pages.
    DirtyPagesNotReturned = "dirty-pages-not-returned",
    /// A replica that lost the swap resumes the guest all the same.
    BothPromote = "both-promote",
    /// The primary drops a silent replica without asking the arbiter.
    DegradeWithoutArbiter = "degrade-without-arbiter",
    /// A replica that is not listed takes over, and the arbiter lets it.
    SeedingTakesOver = "seeding-takes-over",
    /// A swap whose reply was lost counts as failed.
    LostReplyIsFailure = "lost-reply-is-failure",
    /// The primary releases on an acknowledgement of any age.
    StaleAckHonoured = "stale-ack-honoured",
    /// Forwarded ingress is not given to the guest at takeover.
    IngressReplayDropped = "ingress-replay-dropped",
    /// Heartbeats count as life even when the epoch loop behind them hangs.
    ProgressNotInHeartbeats = "progress-not-in-heartbeats",
    /// The replica goes on acknowledging after it sent its takeover swap.
    AcksWhileTakingOver = "acks-while-taking-over",
    /// A replica is listed while output still flows ungated.
    ListedWithoutHold = "listed-without-hold",
    /// The gated frames of the last committed epoch are not sent at takeover.
    GatedFramesDropped = "gated-frames-dropped",
    /// The replica applies an epoch to its image before it is whole.
    PartialEpochApplied = "partial-epoch-applied",
    /// A new leader of the arbiter's group does not have the newest swap, though it was replicated.
    ReplicatedSwapForgotten = "replicated-swap-forgotten",
    /// An aborted epoch forgets what it carried of the disks.
    ExtentsNotReturned = "extents-not-returned",
    /// What is copied of a disk is applied after what the guest wrote meanwhile.
    CopiesAfterChanges = "copies-after-changes",
    /// A copy of a disk that was made for a replica which went is sent to the next one, without what was written in between.
    CopiesOutliveTheLog = "copies-outlive-the-log",
    /// A replica is listed before it has the disks.
    ListedBeforeFilled = "listed-before-filled",
    /// After an epoch was aborted, changes are still told against what it carried.
    StaleShadow = "stale-shadow",
    /// A replica takes over without waiting for the lease it gave.
    LeaseNotOutwaited = "lease-not-outwaited",
    /// A replica that waits for its lease to end goes on giving new ones.
    LeaseRenewedInSuspicion = "lease-renewed-in-suspicion",
    /// The active counts a lease from when the echo arrives.
    LeaseFromArrival = "lease-from-arrival",
    /// An active that has given up a handover goes on speaking on echoes from before.
    LeaseOutlivesHandover = "lease-outlives-handover",
    /// Output that is not committed leaves however much would be lost.
    ExposureUnbounded = "exposure-unbounded",
}

impl std::str::FromStr for Sabotage {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|s| s.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|s| s.name()).collect();
            format!("no sabotage is called {name:?}; there are {}", known.join(", "))
        })
    }
}

#[cfg(feature = "sabotage")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Switches one fault on for this thread, or all off.
#[cfg(feature = "sabotage")]
pub fn set_sabotage(fault: Option<Sabotage>) {
    ACTIVE.set(fault);
}

/// Whether the fault is on in this thread; always false without the feature.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn sabotaged(fault: Sabotage) -> bool {
    ACTIVE.get() == Some(fault)
}

/// Whether the fault is on in this thread; always false without the feature.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub const fn sabotaged(_: Sabotage) -> bool {
    false
}
