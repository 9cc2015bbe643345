//! Builds what guests boot from.
//!
//! [`linux`] makes the smallest Linux guest: Debian's kernel and an initramfs. [`debian`] makes a whole Debian on a disk image.
//! [`disk`] knows the files that hold disks. Everything that takes long is kept in a [`Cache`] under a hash of what it was
//! made from.

pub mod cache;
pub mod debian;
pub mod disk;
pub mod error;
pub mod limits;
pub mod linux;
pub mod observer;
pub mod tool;

pub use cache::Cache;
pub use error::ImageError;
pub use observer::{Observer, Unwatched};
