//! Disk: virtio-blk on one side, an image file or block device on the other.
//!
//! ```text
//!   guest queues ──> device ──> Request (checked) ──> Engine ──> image
//!        ^                                              │
//!        └──── status byte, used ring <── Finished <────┘
//! ```
//! A raw image is worked on by io_uring straight from and into guest memory (`engine/`); other formats go through
//! `imago`, one request at a time. Each disk has a thread of its own, so that a slow one holds up nobody else.
//!
//! A pause waits for what is in flight: then no request is half done in any saved state, and a restored guest
//! finds every request either completed or still in its queue.

mod device;
mod engine;
mod follow;
mod image;
mod journal;
mod persist;
mod queue;
mod request;

mod metrics;

pub(crate) use device::{Behind, Disk};
pub use follow::DiskPort;
pub(crate) use follow::Follower;
pub use image::{DiskImage, DiskThen, ImageError};
pub use journal::path_of as journal_of;
#[cfg(feature = "fuzzing")]
pub use journal::{fuzz_journal, seeds_journal};
pub use metrics::BlockMetrics;
