//! Guest RAM: a memfd mapped into this process, addressed by guest physical address or by page.
//!
//! Replication counts pages, KVM counts per memory slot, guests count addresses. RAM is one run of pages
//! ([`PageIndex`], the offset in the memfd) that appears in guest physical space in two parts, below the hole
//! for devices and above 4 GiB:
//!
//! ```text
//!   page   0 ......... low_pages | low_pages ........ page_count
//!   gpa    0 ......... 3 GiB     | 4 GiB ............
//! ```

mod dirty_map;
mod hole_map;
mod ram;

pub use dirty_map::DirtyMap;
use hole_map::HoleMap;
pub use mycelium_ram_core::{PageIndex, PageSet};
pub(crate) use ram::HostRange;
pub(crate) use ram::Slot;
pub use ram::{GuestRam, MemoryError, PAGE_BYTES, Page};

/// A guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);
