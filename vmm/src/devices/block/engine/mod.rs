//! What carries requests out: io_uring for raw images, `imago` for others.

mod format;
mod ring;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use mycelium_ram_core::disk::Change;
use vmm_sys_util::eventfd::EventFd;

use super::image::{DiskImage, Store};
use super::request::Operation;
use crate::memory::{GuestRam, HostRange};
use format::FormatEngine;
use ring::RingEngine;

/// A request that is over. `slot` is what it was started with.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) slot: u16,
    pub(super) result: io::Result<()>,
}

/// Carries out requests, in any order. Between `start` and `finished` it reads or writes the guest memory of the
/// request; dropping it waits for that to end.
#[derive(Debug)]
pub(super) enum Engine {
    Ring(Box<RingEngine>),
    Format(FormatEngine),
    /// The image is not ours (yet, or any more): nothing is read, cached or locked.
    Away,
}

impl Engine {
    /// An engine on `image` for requests in `slots` slots, whose memory is in `ram`. `done` is signalled when a request
    /// has finished that had not when it was submitted.
    ///
    /// # Errors
    /// When the kernel grants no ring.
    pub(super) fn new(
        image: DiskImage,
        ram: Arc<GuestRam>,
        slots: u16,
        done: &EventFd,
    ) -> io::Result<Engine> {
        let DiskImage { store, memory_align, plain, .. } = image;
        Ok(match store {
            Store::Raw(file) => {
                Engine::Ring(Box::new(RingEngine::new(&file, plain, memory_align, ram, slots, done)?))
            }
            Store::Format(access) => Engine::Format(FormatEngine::new(*access, plain, ram)),
        })
    }

    /// The image's file, through the page cache; `None` while it is away.
    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Engine::Ring(ring) => Some(ring.file()),
            Engine::Format(format) => Some(format.file()),
            Engine::Away => None,
        }
    }

    /// Makes all that was written last. Nothing is under way.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Engine::Ring(ring) => ring.file().sync_data(),
            Engine::Format(format) => format.flush(),
            Engine::Away => Ok(()),
        }
    }

    /// Takes a request; `memory` is where its data goes or comes from, as long as the operation says.
    pub(super) fn start(&mut self, slot: u16, operation: Operation, memory: &[HostRange]) {
        match self {
            Engine::Ring(ring) => ring.start(slot, operation, memory),
            Engine::Format(format) => format.start(slot, operation, memory),
            Engine::Away => unreachable!("a machine whose disks are away does not run"),
        }
    }

    /// As [`start`](Self::start) for a write, of data at an address as [`memory_align`](Self::memory_align) wants it.
    pub(super) fn start_with(&mut self, slot: u16, operation: Operation, data: Bytes) {
        match self {
            Engine::Ring(ring) => ring.start_with(slot, operation, data),
            Engine::Format(format) => format.start_with(slot, operation, &data),
            Engine::Away => unreachable!("a machine whose disks are away does not run"),
        }
    }

    /// Alignment of memory that needs no detour, bytes.
    pub(super) fn memory_align(&self) -> usize {
        match self {
            Engine::Ring(ring) => ring.memory_align(),
            Engine::Format(_) | Engine::Away => 1,
        }
    }

    /// The image's file if it holds what the disk holds, byte for byte.
    pub(super) fn raw_file(&self) -> Option<Arc<File>> {
        match self {
            Engine::Ring(ring) => Some(ring.shared_file()),
            Engine::Format(_) | Engine::Away => None,
        }
    }

    /// Makes a change to the image past all queues.
    pub(super) fn change(&self, change: &Change) -> io::Result<()> {
        match change {
            Change::Write { offset, data } | Change::Copy { offset, data } => self.write_at(*offset, data),
            Change::Zero { offset, bytes } => self.zero_at(*offset, *bytes),
            Change::Flush => Ok(()),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Engine::Ring(ring) => ring.file().write_all_at(data, offset),
            Engine::Format(format) => format.write_at(offset, data),
            Engine::Away => Err(away()),
        }
    }

    fn zero_at(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match self {
            Engine::Ring(ring) => ring.zero_at(offset, bytes),
            Engine::Format(format) => format.zero_at(offset, bytes),
            Engine::Away => Err(away()),
        }
    }

    /// Reads from the image past all queues.
    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Engine::Ring(ring) => ring.read_at(offset, into),
            Engine::Format(format) => format.read_at(offset, into),
            Engine::Away => Err(away()),
        }
    }

    /// Has all requests taken so far begun.
    pub(super) fn submit(&mut self) {
        if let Engine::Ring(ring) = self {
            ring.submit(0);
        }
    }

    /// Whether a request is over; at next to no cost.
    pub(super) fn is_over(&mut self) -> bool {
        match self {
            Engine::Ring(ring) => ring.is_over(),
            Engine::Format(format) => format.is_over(),
            Engine::Away => false,
        }
    }

    /// The next request that is over.
    pub(super) fn finished(&mut self) -> Option<Finished> {
        match self {
            Engine::Ring(ring) => ring.finished(),
            Engine::Format(format) => format.finished(),
            Engine::Away => None,
        }
    }

    /// Waits for the next request to be over; `None` if there is none under way.
    pub(super) fn wait(&mut self) -> Option<Finished> {
        match self {
            Engine::Ring(ring) => ring.wait(),
            Engine::Format(format) => format.finished(),
            Engine::Away => None,
        }
    }
}

fn away() -> io::Error {
    io::Error::other("the disk's image is not open in this process")
}
