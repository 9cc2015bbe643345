//! Finds what a disk image boots, as `pygrub` does: read-only, without mounting anything, and without harm from an image
//! made to do some.
//!
//! The way from the disk to a kernel, each step a module: partitions (`table`), what is in them (`fs`, `volume`), the
//! entries of a boot configuration (`grub`, `bls`, `extlinux`, `last_resort`) as one kind of list (`menu`), and the files
//! the chosen entry names (`plan`).

mod bls;
mod disk;
mod error;
mod extlinux;
mod fs;
mod grub;
mod last_resort;
pub mod limits;
mod menu;
mod plan;
mod search;
mod table;
mod volume;

#[cfg(feature = "fuzzing")]
mod fuzz;

pub use disk::{Disk, RawDisk};
pub use error::{BootDiskError, PartitionReport};
pub use fs::Kind;
#[cfg(feature = "fuzzing")]
pub use fuzz::{fuzz_bls, fuzz_ext4, fuzz_extlinux, fuzz_grub, fuzz_table};
pub use plan::{BootFile, BootPlan};
pub use search::{Options, find};
