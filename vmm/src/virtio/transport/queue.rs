//! One queue, and what device and driver spare each other: notifications and interrupts nobody waits for.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::super::chain::{Chain, ChainError, Memory};
use super::{NO_VECTOR, new_queue};

#[derive(Debug)]
pub(super) struct VirtQueue {
    pub(super) queue: Queue,
    pub(super) vector: u16,
    /// The driver has been told not to notify. Not part of a state: who restores one looks into every queue.
    quiet: bool,
}

impl VirtQueue {
    pub(super) fn new() -> VirtQueue {
        Self::of(new_queue(), NO_VECTOR)
    }

    pub(super) fn of(queue: Queue, vector: u16) -> VirtQueue {
        VirtQueue { queue, vector, quiet: false }
    }

    pub(super) fn reset(&mut self) {
        *self = VirtQueue::new();
    }

    /// Takes the next chain; from then on, until [`VirtQueue::rearm`], the driver need not tell of more.
    pub(super) fn pop(&mut self, memory: &Memory, chain: &mut Chain) -> Result<bool, ChainError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        let mut available = self.queue.iter(memory).map_err(|_| ChainError::Ring)?;
        let Some(descriptors) = available.next() else { return Ok(false) };
        chain.walk(descriptors)?;
        self.hush(memory)?;
        Ok(true)
    }

    /// With event indices the driver is silent after one notification, without being told.
    fn hush(&mut self, memory: &Memory) -> Result<(), ChainError> {
        if !self.quiet && !self.queue.event_idx_enabled() {
            self.queue.disable_notification(memory).map_err(|_| ChainError::Ring)?;
            self.quiet = true;
        }
        Ok(())
    }

    /// Asks the driver to notify again; true if a chain came meanwhile.
    pub(super) fn rearm(&mut self, memory: &Memory) -> Result<bool, ChainError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.quiet = false;
        self.queue.enable_notification(memory).map_err(|_| ChainError::Ring)
    }

    /// Whether the driver wants an interrupt for what was completed since it was asked last.
    pub(super) fn wants_interrupt(&mut self, memory: &Memory) -> Result<bool, ChainError> {
        // Orders what was completed before the look at what the driver says, in either way.
        let wanted = self.queue.needs_notification(memory).map_err(|_| ChainError::Ring)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|_| ChainError::Ring)?;
        Ok(wanted && u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
