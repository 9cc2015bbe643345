//! State of a disk. Nothing is under way while a machine is paused; what is on the disk is not part of a machine.

use super::device::Block;
use super::request::SECTOR_BYTES;
use crate::state::{Fields, Payload, StateError};

/// The disk's own part of its section.
#[derive(Debug)]
pub(crate) struct BlockSaved {
    /// What the guest knows the disk's size to be.
    sectors: u64,
}

impl Block {
    pub(super) fn save_own(&self, out: &mut Payload<'_>) {
        out.u64(self.geometry.bytes / SECTOR_BYTES);
    }

    pub(super) fn restore_own(&mut self, saved: &BlockSaved) {
        let here = self.geometry.bytes / SECTOR_BYTES;
        if saved.sectors != here {
            // The guest keeps its idea of the size; requests past the end of what is here fail, and say so.
            tracing::warn!(
                saved = saved.sectors,
                here,
                "a disk has another size than when the state was saved"
            );
        }
        self.waiting.fill(false);
    }
}

impl BlockSaved {
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<BlockSaved, StateError> {
        Ok(BlockSaved { sectors: fields.u64()? })
    }
}
