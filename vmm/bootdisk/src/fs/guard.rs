//! What stands between a hostile image and `ext4-view`: the crate trusts a few numbers it should not, so they are checked
//! before it sees them, and what it reads is counted.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::rc::Rc;

use ext4_view::Ext4Read;

use super::FilesError;
use crate::disk::Slice;
use crate::limits;

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const FEATURE_INCOMPAT: usize = 0x60;
const FEATURE_RO_COMPAT: usize = 0x64;
const METADATA_CSUM: u32 = 0x400;
const RECOVERY: u32 = 0x4;
const IS_64BIT: u32 = 0x80;

/// Bytes that may still be read; shared with whoever opens files.
pub(super) type Allowance = Rc<Cell<u64>>;

/// Reads a partition for `ext4-view`.
pub(super) struct Guard {
    slice: Slice,
    superblock: [u8; SUPERBLOCK_BYTES],
    allowance: Allowance,
}

impl Guard {
    /// Checks the superblock. `journal`: whether a journal that was not written back is to be replayed.
    pub(super) fn new(slice: Slice, allowance: Allowance, journal: bool) -> Result<Self, FilesError> {
        let mut superblock =
            slice.array(SUPERBLOCK_AT)?.ok_or(FilesError::Damaged("it has no superblock"))?;
        check_geometry(&superblock, slice.bytes())?;
        // With sums of metadata the crate takes an index node's count from a folder's block before it has checked it,
        // and slices past the block's end. Sums guard against decay, not against malice, and file contents have none.
        mask(&mut superblock, FEATURE_RO_COMPAT, METADATA_CSUM);
        if !journal {
            mask(&mut superblock, FEATURE_INCOMPAT, RECOVERY);
        }
        Ok(Self { slice, superblock, allowance })
    }
}

/// True if the file system was not unmounted, so that a journal may hold newer blocks.
pub(super) fn needs_recovery(slice: &Slice) -> io::Result<bool> {
    let superblock = slice.array::<SUPERBLOCK_BYTES>(SUPERBLOCK_AT)?;
    Ok(superblock.is_some_and(|bytes| u32_at(&bytes, FEATURE_INCOMPAT) & RECOVERY != 0))
}

fn mask(superblock: &mut [u8; SUPERBLOCK_BYTES], at: usize, bits: u32) {
    let value = u32_at(superblock, at) & !bits;
    superblock[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn u32_at(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Block size and group count become allocations.
fn check_geometry(superblock: &[u8; SUPERBLOCK_BYTES], partition_bytes: u64) -> Result<(), FilesError> {
    let exponent = u32_at(superblock, 0x18);
    if exponent > limits::EXT_BLOCK_EXPONENT_MAX {
        return Err(FilesError::Damaged("its blocks are larger than 64 KiB"));
    }
    let is_64bit = u32_at(superblock, FEATURE_INCOMPAT) & IS_64BIT != 0;
    // The crate takes the upper half in any case.
    let high = u32_at(superblock, 0x150);
    if !is_64bit && high != 0 {
        return Err(FilesError::Damaged("its block count has an upper half without the feature for it"));
    }
    let blocks = u64::from(high) << 32 | u64::from(u32_at(superblock, 4));
    if blocks.checked_mul(1024 << exponent).is_none_or(|bytes| bytes > partition_bytes) {
        return Err(FilesError::Damaged("it is larger than its partition (is the image cut short?)"));
    }
    let per_group = u64::from(u32_at(superblock, 0x20)).max(1);
    if blocks.div_ceil(per_group) > limits::EXT_GROUPS_MAX {
        return Err(FilesError::Damaged("it has too many block groups"));
    }
    Ok(())
}

impl Ext4Read for Guard {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        if start == SUPERBLOCK_AT && into.len() == SUPERBLOCK_BYTES {
            into.copy_from_slice(&self.superblock);
            return Ok(());
        }
        let left = self.allowance.get().checked_sub(u64::try_from(into.len())?);
        self.allowance.set(left.ok_or("more was read from it than a file system in order needs")?);
        Ok(self.slice.read_at(start, into)?)
    }
}
