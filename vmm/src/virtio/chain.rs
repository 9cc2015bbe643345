//! Descriptor chains, read with suspicion.
//!
//! The ring lives in guest memory and may hold anything: loops, addresses outside RAM, lengths that overflow.
//! `virtio-queue` bounds the walk but ends it silently; here an unfinished walk is an error, because the device
//! must not complete a request it saw only part of.

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemoryMmap};

use crate::memory::DirtyMap;

pub(crate) type Memory = GuestMemoryMmap<DirtyMap>;

/// Most descriptors one chain may have: as many as a queue.
const CHAIN_MAX: usize = crate::limits::QUEUE_SIZE as usize;

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("the available ring claims more entries than the queue has")]
    Ring,
    #[error("a descriptor chain loops, leaves its table or is empty")]
    Broken,
    #[error("a buffer lies outside guest RAM")]
    OutsideRam,
    #[error("a buffer has the wrong direction")]
    Direction,
    #[error("a request has a length it cannot have")]
    Length,
    #[error("a buffer does not begin or end with a page")]
    Unaligned,
    #[error("a buffer is too short for what it must hold")]
    Short,
}

/// A whole, finite chain.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    buffers: [(u64, u32); CHAIN_MAX],
    readable: usize,
    count: usize,
}

impl Chain {
    /// An empty chain to walk into; kept by the device, so that walking allocates nothing.
    pub(crate) fn new() -> Chain {
        Chain { head: 0, buffers: [(0, 0); CHAIN_MAX], readable: 0, count: 0 }
    }

    /// Walks `chain` to its end.
    ///
    /// # Errors
    /// [`ChainError`] if it has none, or if a readable buffer follows a writable one.
    pub(crate) fn walk(&mut self, chain: DescriptorChain<&Memory>) -> Result<(), ChainError> {
        (self.head, self.readable, self.count) = (chain.head_index(), 0, 0);
        let mut last: Option<Descriptor> = None;
        for descriptor in chain {
            let slot = self.buffers.get_mut(self.count).ok_or(ChainError::Broken)?;
            *slot = (descriptor.addr().0, descriptor.len());
            self.count += 1;
            match (descriptor.is_write_only(), self.readable + 1 == self.count) {
                (true, _) => {}
                (false, true) => self.readable += 1,
                (false, false) => return Err(ChainError::Direction),
            }
            last = Some(descriptor);
        }
        match last {
            Some(descriptor) if !descriptor.has_next() => Ok(()),
            _ => Err(ChainError::Broken),
        }
    }

    /// The descriptor the driver knows this chain by.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device may read.
    pub(crate) fn readable_bytes(&self) -> u64 {
        total(&self.buffers[..self.readable])
    }

    /// Bytes the device may write.
    pub(crate) fn writable_bytes(&self) -> u64 {
        total(&self.buffers[self.readable..self.count])
    }

    /// The buffers the device may write: address and length of each, as the driver gave them.
    pub(crate) fn writable(&self) -> &[(u64, u32)] {
        &self.buffers[self.readable..self.count]
    }

    /// Copies the readable part into `into`, which it fills or not; returns the bytes copied.
    ///
    /// # Errors
    /// [`ChainError::OutsideRam`].
    pub(crate) fn read(&self, memory: &Memory, into: &mut [u8]) -> Result<usize, ChainError> {
        let mut done = 0;
        for (address, length) in &self.buffers[..self.readable] {
            let take = into.len().saturating_sub(done).min(usize::try_from(*length).unwrap_or(usize::MAX));
            memory
                .read_slice(&mut into[done..done + take], vm_memory::GuestAddress(*address))
                .map_err(|_| ChainError::OutsideRam)?;
            done += take;
        }
        Ok(done)
    }

    /// Copies `from` into the writable part; returns the bytes copied, less than `from` if the part is short.
    ///
    /// # Errors
    /// [`ChainError::OutsideRam`].
    pub(crate) fn write(&self, memory: &Memory, from: &[u8]) -> Result<usize, ChainError> {
        let mut done = 0;
        for (address, length) in &self.buffers[self.readable..self.count] {
            let take = from.len().saturating_sub(done).min(usize::try_from(*length).unwrap_or(usize::MAX));
            memory
                .write_slice(&from[done..done + take], vm_memory::GuestAddress(*address))
                .map_err(|_| ChainError::OutsideRam)?;
            done += take;
        }
        Ok(done)
    }
}

impl Chain {
    /// Guest memory of the readable part from byte `skip` on: (address, bytes).
    pub(crate) fn readable_after(&self, skip: u64) -> Vec<(u64, u32)> {
        cut(&self.buffers[..self.readable], skip, u64::MAX)
    }

    /// Guest memory of the first `bytes` bytes of the writable part.
    pub(crate) fn writable_before(&self, bytes: u64) -> Vec<(u64, u32)> {
        cut(&self.buffers[self.readable..self.count], 0, bytes)
    }

    /// Address of the last byte of the writable part.
    pub(crate) fn last_writable_byte(&self) -> Option<u64> {
        let writable = &self.buffers[self.readable..self.count];
        let (address, bytes) = writable.iter().rev().find(|(_, bytes)| *bytes > 0)?;
        address.checked_add(u64::from(*bytes) - 1)
    }
}

/// The part of `buffers` that follows the first `skip` bytes and has at most `bytes` bytes.
fn cut(buffers: &[(u64, u32)], mut skip: u64, mut bytes: u64) -> Vec<(u64, u32)> {
    let mut parts = Vec::with_capacity(buffers.len());
    for (address, length) in buffers {
        let length = u64::from(*length);
        let from = skip.min(length);
        let take = (length - from).min(bytes);
        (skip, bytes) = (skip - from, bytes - take);
        if take > 0 {
            // An address that wraps is no RAM either way.
            parts.push((address.wrapping_add(from), u32::try_from(take).unwrap_or(u32::MAX)));
        }
    }
    parts
}

fn total(buffers: &[(u64, u32)]) -> u64 {
    buffers.iter().map(|(_, length)| u64::from(*length)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_across_buffers() {
        let buffers = [(100, 10), (200, 0), (300, 20)];
        assert_eq!(cut(&buffers, 0, u64::MAX), [(100, 10), (300, 20)]);
        assert_eq!(cut(&buffers, 4, u64::MAX), [(104, 6), (300, 20)]);
        assert_eq!(cut(&buffers, 12, 5), [(302, 5)]);
        assert_eq!(cut(&buffers, 0, 11), [(100, 10), (300, 1)]);
        assert_eq!(cut(&buffers, 30, 1), []);
    }
}
