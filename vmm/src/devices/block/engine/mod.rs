//! What carries requests out: io_uring for raw images, `imago` for others.

mod format;
mod ring;

use std::fs::File;
use std::io;
use std::sync::Arc;

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

    /// Reads from the image past all queues.
    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Engine::Ring(ring) => ring.read_at(offset, into),
            Engine::Format(format) => format.read_at(offset, into),
            Engine::Away => Err(io::Error::other("the disk's image is not open in this process")),
        }
    }

    /// Has all requests taken so far begun.
    pub(super) fn submit(&mut self) {
        if let Engine::Ring(ring) = self {
            ring.submit(0);
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
