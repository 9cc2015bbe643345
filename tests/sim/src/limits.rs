//! Every bound of the simulator with its unit and its reason.

/// Pages of the simulated guest: enough for several parts an epoch, few enough to compare whole images.
pub const GUEST_PAGES: u64 = 24;
/// Blocks of the simulated guest's disk, each as large as a page and an extent.
pub const DISK_BLOCKS: u64 = 6;
/// Parts into which an epoch's changes of the disk are spread, at most.
pub const DISK_PARTS: usize = 4;
/// Pages in a part: small, so that an epoch has several parts and can be torn between them.
pub const PART_PAGES: usize = 2;
/// Pages an active process keeps the sent content of: enough for the hot ones, few enough that cold ones push each other out.
pub const SHADOW_PAGES: usize = 9;
/// Pages that a guest which does next to nothing writes in an epoch.
pub const QUIET_PAGES: u64 = 3;
/// Clients of one guest; each has a page of its own in it.
pub const CLIENTS: u8 = 4;
/// Bytes a replica may stage.
pub const STAGE_BYTES: usize = 4 << 20;
/// Frames an active process keeps for a stopped guest; more are dropped, as a full tap queue does.
pub const RX_FRAMES: usize = 256;
/// Frames that may wait to be sent to one replica. Two epochs and a seed fit many times over.
pub const SEND_FRAMES: usize = 512;
/// Whole epochs a replica may hold without having applied them.
pub const BACKLOG_EPOCHS: usize = 64;
/// Epochs sent to one replica and not acknowledged; later ones are left for the next cut.
pub const SENT_EPOCHS: usize = 2;
/// A release decision is carried out within this many nanoseconds or waits for the next one: the process may have been
/// stopped in between.
pub const RELEASE_WINDOW_NS: u64 = 5_000_000;
/// After the heal, nanoseconds until everything must be well again: twice an abandoned replica's patience plus slack for
/// a full seed over a slow path.
pub const SETTLE_NS: u64 = 8_000_000_000;
/// Lines of trace kept.
pub const TRACE_LINES: usize = 100_000;
/// Events after which a run is cut off as a livelock.
pub const EVENTS: u64 = 3_000_000;
