//! The partitions of a disk.
//!
//! Read by own code rather than by a crate: those at hand (`gpt`, `gptman`, `mbrman`) are made for editing, take their reads
//! through `Seek`, and allocate by counts from the disk before they check them. What is needed here are the two ranges in
//! an entry, from tables written to mislead.

mod gpt;
mod mbr;

use std::io;

use crate::disk::Slice;
use crate::limits;

/// How the table was written; GRUB's device names contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Gpt,
    Mbr,
    /// The file system begins where the disk begins.
    Bare,
}

/// One partition.
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    /// From 1, as Linux and GRUB count; 0 when the disk has no table.
    pub(crate) number: u32,
    pub(crate) slice: Slice,
    pub(crate) scheme: Scheme,
    /// What the table calls it, where that says there can be no file system in it.
    pub(crate) role: Option<&'static str>,
}

/// Why a table was not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("its MBR announces a GPT, but neither the primary nor the backup GPT is intact")]
    BrokenGpt,
}

/// The partitions of the disk; the disk itself if it has none.
pub(crate) fn partitions(disk: &Slice) -> Result<Vec<Partition>, TableError> {
    let bare = || Partition { number: 0, slice: disk.clone(), scheme: Scheme::Bare, role: None };
    let Some(sector) = disk.array::<512>(0)? else {
        return Ok(vec![bare()]);
    };
    let Some(primary) = mbr::primary(&sector) else {
        return Ok(vec![bare()]);
    };
    let mut found = if mbr::is_protective(&primary) {
        gpt::partitions(disk)?.ok_or(TableError::BrokenGpt)?
    } else {
        mbr::partitions(disk, &primary)?
    };
    found.truncate(limits::PARTITIONS_MAX);
    Ok(if found.is_empty() { vec![bare()] } else { found })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Entry point for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(disk: &Slice) {
    if let Ok(partitions) = partitions(disk) {
        assert!(partitions.len() <= limits::PARTITIONS_MAX);
        assert!(partitions.iter().all(|p| p.slice.bytes() <= disk.bytes()));
    }
}

#[cfg(test)]
mod tests;
