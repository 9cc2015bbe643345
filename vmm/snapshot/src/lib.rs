//! Snapshots of a VM: one file that is whole or refused, and guest memory that comes out of it as it is touched.
//!
//! Saving: [`SnapshotWriter`] takes metadata, machine state and a [`Memory`], of which it stores what is not zero.
//! Restoring: [`Snapshot::open`] checks everything but page contents; [`Snapshot::load_all`] then fills a
//! [`MemoryMut`] before the VM runs, [`lazy::LazyMemory`] fills mappings while it runs. The latter takes its pages from any
//! [`PageFetch`], of which a snapshot is one.
//!
//! The bytes of the file are in `format`. This crate knows nothing of KVM: pages are numbers, memory is a trait or
//! a mapping.

mod error;
mod fetch;
mod format;
#[cfg(feature = "fuzzing")]
mod fuzz;
mod index;
pub mod lazy;
pub mod limits;
mod memory;
mod read_at;
mod reader;
mod writer;

pub use error::{SaveError, SnapshotError};
pub use fetch::{Extent, FetchError, Fetched, PageFetch};
pub use format::FORMAT_VERSION;
pub use memory::{FileMemory, Memory, MemoryMut, Slot};
pub use read_at::ReadAt;
pub use reader::{Progress, Snapshot};
pub use writer::SnapshotWriter;

#[cfg(feature = "fuzzing")]
pub use fuzz::fuzz_snapshot;
