//! What carries requests out: io_uring for raw images, `imago` for others.

mod format;
mod ring;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

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
}

impl Engine {
    /// An engine on `image` for requests in `slots` slots, whose memory is in `ram`.
    ///
    /// # Errors
    /// When the kernel grants no ring.
    pub(super) fn new(image: DiskImage, ram: Arc<GuestRam>, slots: u16) -> io::Result<Engine> {
        let DiskImage { store, memory_align, plain, .. } = image;
        Ok(match store {
            Store::Raw(file) => {
                Engine::Ring(Box::new(RingEngine::new(&file, plain, memory_align, ram, slots)?))
            }
            Store::Format(access) => Engine::Format(FormatEngine::new(*access, plain, ram)),
        })
    }

    /// Signalled when a request has finished that had not when it was submitted.
    pub(super) fn fd(&self) -> Option<RawFd> {
        match self {
            Engine::Ring(ring) => Some(ring.fd()),
            Engine::Format(_) => None,
        }
    }

    /// Takes a request; `memory` is where its data goes or comes from, as long as the operation says.
    pub(super) fn start(&mut self, slot: u16, operation: Operation, memory: &[HostRange]) {
        match self {
            Engine::Ring(ring) => ring.start(slot, operation, memory),
            Engine::Format(format) => format.start(slot, operation, memory),
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
        }
    }

    /// Waits for the next request to be over; `None` if there is none under way.
    pub(super) fn wait(&mut self) -> Option<Finished> {
        match self {
            Engine::Ring(ring) => ring.wait(),
            Engine::Format(format) => format.finished(),
        }
    }
}
