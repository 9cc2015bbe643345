//! What replication needs from the outside. The VMM implements the machine ports and the output port, the link's owner
//! implements [`Wire`], the arbiter's client implements [`Arbiter`].

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mycelium_ram_core::disk::DiskChange;
use mycelium_ram_core::message::Output;
use mycelium_ram_core::page_codec::{Change, Page};
use mycelium_ram_core::settle::Request;
use mycelium_ram_core::{EpochId, PageIndex, PageSet};

/// A machine port failed. The text is the machine's own account.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct PortError {
    /// What was being done.
    pub doing: &'static str,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl PortError {
    /// Wraps a machine's error.
    pub fn new(doing: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { doing, source: source.into() }
    }
}

/// The running guest, as the epoch thread sees it. Only that thread calls these.
pub trait ActiveMachine: Debug + Send + 'static {
    /// Pages of guest RAM.
    fn pages(&self) -> u64;

    /// Begins to track which pages change. Every page counts as changed before this.
    ///
    /// # Errors
    /// When tracking cannot be had; the machine is as before.
    fn start_tracking(&mut self) -> Result<(), PortError>;

    /// Ends tracking.
    ///
    /// # Errors
    /// When it cannot be ended; it goes on.
    fn stop_tracking(&mut self) -> Result<(), PortError>;

    /// Bytes of each disk that is replicated; 0 for one that is not.
    fn disks(&self) -> Vec<u64>;

    /// A way to read the disks while the guest runs.
    fn disk_reader(&self) -> Arc<dyn DiskReader>;

    /// Disks that were told to wait may go on.
    fn kick_disks(&self);

    /// Stops all vCPUs and devices; when it returns nothing changes guest memory or state and no output is made.
    ///
    /// # Errors
    /// When a vCPU does not stop; the guest then runs.
    fn pause(&mut self) -> Result<(), PortError>;

    /// Processor time that the vCPUs have used so far, all together. Paused.
    fn busy(&self) -> Duration;

    /// Lets the guest go on after [`ActiveMachine::pause`].
    fn resume(&mut self);

    /// While the guest stands still, has what arrives for it counted and forwarded at once, as if it had been given it; or no more. It
    /// gets it all the same, should it go on.
    fn forward_input(&mut self, forward: bool);

    /// Adds the pages changed since the last harvest, by the guest or by devices, and begins a new count. Paused. Changed pages
    /// of `open` need not be watched anew: they may be in every harvest from now on, changed or not, until one in which they are
    /// not in `open`.
    ///
    /// # Errors
    /// When the log cannot be read; what was not added to `into` will be in the next harvest.
    fn harvest(&mut self, into: &mut PageSet, open: &PageSet) -> Result<(), PortError>;

    /// How many pages the next harvest would add, devices' writes not counted; 0 where that cannot be told without harvesting.
    /// The guest may run.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn dirty_pages(&mut self) -> Result<u64, PortError>;

    /// Copies a page out. During seeding the guest runs and the copy may be torn; the page is then in the next harvest.
    fn read_page(&self, page: PageIndex, into: &mut Page);

    /// Boots the guest anew. Paused; every page counts as changed after this.
    ///
    /// # Errors
    /// When it cannot; the guest must not go on then.
    fn reset(&mut self) -> Result<(), PortError>;

    /// Writes vCPU and device state to `into`, which is empty. Paused.
    ///
    /// # Errors
    /// When some state cannot be read; the guest is unharmed.
    fn save_state(&mut self, into: &mut Vec<u8>) -> Result<(), PortError>;
}

/// Reads the disks behind the guest's back.
pub trait DiskReader: Debug + Send + Sync + 'static {
    /// Fills `into` from `offset` of a disk on. What the guest writes meanwhile may be in it, or in part.
    ///
    /// # Errors
    /// The host's.
    fn read(&self, disk: u8, offset: u64, into: &mut [u8]) -> Result<(), PortError>;
}

/// The machine that waits to become the guest. Only the staging thread calls these.
pub trait PassiveMachine: Debug + Send + 'static {
    /// Pages of guest RAM.
    fn pages(&self) -> u64;

    /// Changes a page.
    fn change_page(&mut self, page: PageIndex, change: Change<'_>);

    /// Bytes of each disk that is replicated; 0 for one that is not.
    fn disks(&self) -> Vec<u64>;

    /// Promises the changes of an epoch that is about to be acknowledged: a crash of this process does not lose them, and where
    /// the guest flushed, neither does one of the host.
    ///
    /// # Errors
    /// The host's; the epoch must not be acknowledged then.
    fn promise(&mut self, epoch: EpochId, changes: &[DiskChange]) -> Result<(), PortError>;

    /// The promised changes of all epochs up to this one have been made.
    fn made_through(&mut self, epoch: EpochId);

    /// The guest goes on from the end of this epoch: what was promised of later ones is not to be.
    ///
    /// # Errors
    /// The host's; the guest must not go on then.
    fn forget_after(&mut self, epoch: EpochId) -> Result<(), PortError>;

    /// Changes a disk. A flush asks for nothing.
    ///
    /// # Errors
    /// The host's. The disk is not what it should be then, and the guest must not go on with it.
    fn change_disk(&mut self, change: &DiskChange) -> Result<(), PortError>;
}

/// The outside world, as the gate sees it.
pub trait OutputPort: Debug + Send + Sync + 'static {
    /// Lets an output out. Must not block.
    fn emit(&self, output: &Output);

    /// There is room at the gate again: devices that were told to wait may offer again.
    fn room(&self);
}

/// Sending half of the link to one peer.
pub trait Wire: Debug + Send + Sync + 'static {
    /// Sends a small frame, unreliably, at once.
    fn datagram(&self, frame: Bytes);

    /// Queues a frame for reliable delivery, exactly once, in any order. Waits up to `patience` for room.
    ///
    /// # Errors
    /// [`SendFailed`], with the frame when it may be tried again.
    fn bundle(&self, urgent: bool, frame: Bytes, patience: Duration) -> Result<(), SendFailed>;

    /// Gives the link up.
    fn close(&self);
}

/// A frame that was not queued.
#[derive(Debug, thiserror::Error)]
pub enum SendFailed {
    /// No room yet.
    #[error("the link has no room yet")]
    Full(Bytes),
    /// The link is gone.
    #[error("the link is closed")]
    Closed,
}

/// Way to the arbiter. Answers arrive in the inbox, or never; asking again is the core's business.
pub trait Arbiter: Debug + Send + Sync + 'static {
    /// Sends a request; must not block.
    fn ask(&self, request: Request);
}
