//! What goes into a simulated process and what comes out of it.

use bytes::Bytes;
use mycelium_ram_core::mode::Mode;
use mycelium_ram_core::primary::Protection;
use mycelium_ram_core::settle::{Reply, Request as ArbiterRequest};
use mycelium_ram_core::{EpochId, Member, NodeId};

use crate::guest::{Answer, Entry, Request};

/// One connection between two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What arrives at a process.
#[derive(Clone, Debug)]
pub enum Input {
    /// A reliable message on a connection.
    Bundle(ConnId, Bytes),
    /// An unreliable one.
    Datagram(Bytes),
    /// The arbiter answered.
    Arbiter(Reply),
    /// A frame from the tap.
    Frame(Request),
    /// Somebody else announced the guest's address.
    Foreign,
    /// A connection ended.
    Closed(ConnId),
    /// Processes on other nodes, as the control plane knows them.
    Peers(Vec<Member>),
    /// The operator wants no replica on this node.
    Dismiss(NodeId),
    /// The operator wants the guest to go on at a replica.
    HandOver,
    /// The operator wants output to wait for its epoch, or not to.
    SetMode(Mode),
    /// A timer of its own.
    Timer(Timer),
}

impl Input {
    /// Whether it is an arrival, to be handled before any timer.
    #[must_use]
    pub fn is_arrival(&self) -> bool {
        !matches!(self, Self::Timer(_))
    }
}

/// Timers and running jobs of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The core's tick.
    Tick,
    /// Look for replicas.
    Discover,
    /// Carry out the next action the core has decided.
    Step,
    /// The pause of a cut is over.
    CutDone,
    /// Send the next frame to this replica.
    SendNext(Member),
    /// Let the next frame out of the gate.
    ReleaseNext,
    /// Apply the oldest staged epoch to the image.
    ApplyNext,
    /// Copy the next block of the disk for whoever lacks it.
    CopyNext,
    /// The guest's own timer.
    GuestTick,
    /// The vCPUs are set up: resume after a takeover.
    Resume,
    /// Tell the switch again where the guest is.
    Announce(u32),
}

/// A frame on the clients' network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The guest's answer.
    Answer(Answer),
    /// A frame with the guest's address, so that switches learn where it is.
    Announce,
}

/// Places in the protocol where a fault may strike. The last five are the arbiter's: `world/group.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it; all are moments of a process or of its request")]
pub enum Point {
    OfferSent,
    SeedBegun,
    BeforeCut,
    InCut,
    SealedUnsent,
    PartSent,
    EndSent,
    ListSent,
    UnlistSent,
    BeforeRelease,
    AmidRelease,
    GateOpened,
    Accepted,
    PartStaged,
    EpochStaged,
    AckSent,
    TakeoverSent,
    Promoted,
    BeforeReplay,
    Replayed,
    Dismissed,
    HandOverAsked,
    ModeAsked,
    Leased,
    LeaseEnded,
    Yielded,
    TakeoverReceived,
    TakeoverAppended,
    TakeoverReplicated,
    TakeoverAnswered,
    Contested,
}

/// What a process tells the people who watch it (never the core).
#[derive(Clone, Debug)]
pub enum Report {
    /// The guest's history grew: from this hash, by this entry.
    History(u64, Entry),
    /// An epoch was sealed.
    Sealed(EpochId),
    /// The protection changed.
    Status(Protection),
    /// The guest resumes here after a takeover.
    Resumed(EpochId),
    /// The guest was handed over and has ended here.
    HandedOver,
    /// The image and the registers do not fit together.
    Broken(String),
    /// Something for the trace alone.
    Remark(String),
    /// A bound was exceeded.
    Unbounded(String),
}

/// What a process does.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Open a connection and send nothing yet.
    Open(ConnId, Member),
    /// Send on a connection.
    Bundle(ConnId, Bytes),
    /// Close a connection.
    Close(ConnId),
    /// Send a datagram.
    Datagram(Member, Bytes),
    /// Ask the arbiter.
    Ask(ArbiterRequest),
    /// Put a frame on the clients' network.
    Emit(Frame),
    /// Hand the timer in after so many nanoseconds.
    After(u64, Timer),
    /// A fault may strike here.
    Point(Point),
    /// For the watchers.
    Report(Report),
    /// The process ends.
    Exit(String),
}
