//! Disks whose changes are followed: a replica is to hold what they hold.
//!
//! A write is copied out of guest memory once, and the copy goes both to the image and to whoever follows: a guest that changes
//! a buffer while it is being written could otherwise have one content here and another there.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use mycelium_ram_core::disk::{Change, DiskChange};

use super::device::Block;
use super::request::Operation;
use crate::memory::{GuestRam, HostRange};
use crate::virtio::{ChainError, Io};

/// Who is told what the guest does to its disks, in the order in which it asks. Called from the disks' threads.
pub trait DiskPort: Debug + Send + Sync {
    /// Whether it wants to be told of requests that begin now.
    fn is_on(&self) -> bool;

    /// Whether it can take another change. If not, requests wait until `Machine::kick_disks`.
    fn has_room(&self) -> bool;

    /// A change that is about to be made. The machine does not pause before it is.
    fn note(&self, change: DiskChange);
}

/// The one who follows a disk.
#[derive(Clone, Debug)]
pub(crate) struct Follower {
    pub(crate) port: Arc<dyn DiskPort>,
    /// The disk's place among the machine's.
    pub(crate) disk: u8,
}

impl Follower {
    fn note(&self, change: Change) {
        self.port.note(DiskChange { disk: self.disk, change });
    }
}

impl Block {
    /// Whether no more can be noted for now.
    pub(super) fn follower_is_full(&self) -> bool {
        self.follower.as_ref().is_some_and(|follower| follower.port.is_on() && !follower.port.has_room())
    }

    /// Begins a request for which a slot is taken. One that changes the disk is noted first.
    pub(super) fn launch(
        &mut self,
        slot: u16,
        operation: Operation,
        io: &mut Io<'_>,
    ) -> Result<(), ChainError> {
        let followed = self.follower.clone().filter(|follower| follower.port.is_on());
        let Some(follower) = followed.filter(|_| operation.changes()) else {
            self.engine.start(slot, operation, &self.memory);
            return Ok(());
        };
        if self.overlaps(slot, &operation) {
            // Two at once could end in either order here, and have one order there.
            self.finish_others(slot, io)?;
        }
        match operation {
            Operation::Write { offset, .. } => {
                let data = copy_out(&self.ram, &self.memory, self.engine.memory_align());
                follower.note(Change::Write { offset, data: data.clone() });
                self.engine.start_with(slot, operation, data);
            }
            // What a discarded range holds is nobody's promise, but it must be the same on both sides.
            Operation::Discard { offset, bytes } | Operation::WriteZeroes { offset, bytes, .. } => {
                follower.note(Change::Zero { offset, bytes });
                let zero = Operation::WriteZeroes { offset, bytes, unmap: true };
                self.engine.start(slot, zero, &self.memory);
            }
            Operation::Flush | Operation::Read { .. } | Operation::GetId => {
                follower.note(Change::Flush);
                self.engine.start(slot, operation, &self.memory);
            }
        }
        Ok(())
    }

    fn overlaps(&self, slot: u16, operation: &Operation) -> bool {
        let wanted = operation.changed();
        let under_way = self.under_way.iter().enumerate().filter(|(at, _)| *at != usize::from(slot));
        let mut ranges = under_way.filter_map(|(_, pending)| Some(pending.as_ref()?.operation.changed()));
        ranges.any(|range| range.start < wanted.end && wanted.start < range.end)
    }
}

/// A request's data, at an address that direct I/O can use.
fn copy_out(ram: &GuestRam, memory: &[HostRange], align: usize) -> Bytes {
    let total: usize = memory.iter().map(|range| range.bytes).sum();
    let mut bytes = vec![0; total + align - 1];
    let start = bytes.as_ptr().align_offset(align);
    ram.gather(memory, &mut bytes[start..start + total]);
    Bytes::from(bytes).slice(start..start + total)
}
