//! Writing a pattern in pieces of random size and order, and reading it back in others.

use super::device::Disk;
use super::request::{Operation, Request};
use crate::serial;
use alloc::boxed::Box;
use alloc::vec::Vec;
use native_guest::limits::MAX_REQUEST_BYTES;
use native_guest::pattern::{Extent, Random, SECTOR_BYTES, extents, fill, mismatch};

/// Requests under way.
const DEPTH: usize = 16;

/// Longest request, in sectors. Shorter than what is allowed, so that a few megabytes make many requests.
const MAX_SECTORS: usize = MAX_REQUEST_BYTES / 2 / SECTOR_BYTES;

/// How far it is. The flush in between is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Write,
    Read,
}

/// The job.
pub(super) struct Verify {
    bytes: u64,
    seed: u64,
    random: Random,
    phase: Phase,
    left: Vec<Extent>,
    #[expect(clippy::vec_box, reason = "a request is handed to the device by its box, without moving")]
    idle: Vec<Box<Request>>,
    started_ns: u64,
}

impl Verify {
    /// Work on the first `bytes` of a disk that has as many.
    pub(super) fn new(bytes: u64, seed: u64, now_ns: u64) -> Self {
        let mut random = Random::new(seed);
        let left = extents(bytes / SECTOR_BYTES as u64, MAX_SECTORS, &mut random);
        let idle = (0..DEPTH).map(|_| Request::with_capacity(MAX_SECTORS * SECTOR_BYTES)).collect();
        serial::line(format_args!("blk: verify bytes={bytes} seed={seed}"));
        Self { bytes, seed, random, phase: Phase::Write, left, idle, started_ns: now_ns }
    }

    /// Hands over what can be. Whether the job goes on.
    pub(super) fn turn(&mut self, disk: &mut Disk, now_ns: u64) -> bool {
        while let Some(mut request) = self.idle.pop() {
            let Some(extent) = self.left.pop() else {
                self.idle.push(request);
                break;
            };
            self.prepare(&mut request, extent);
            if let Some(back) = disk.submit(request) {
                self.idle.push(back);
                self.left.push(extent);
                break;
            }
        }
        disk.announce();
        self.idle.len() < DEPTH || self.next_phase(disk, now_ns)
    }

    fn prepare(&mut self, request: &mut Request, extent: Extent) {
        let len = extent.count * SECTOR_BYTES;
        match self.phase {
            Phase::Read => {
                request.set(Operation::Read, extent.sector, len);
                request.data_mut().fill(0);
            }
            Phase::Write => {
                request.set(Operation::Write, extent.sector, len);
                fill(request.data_mut(), self.seed, extent.sector);
            }
        }
        // Half of them in two pieces, most of these off any alignment.
        if self.random.below(2) == 0 {
            request.cut_at(self.random.index(len));
        }
    }

    /// Everything of a phase is done: starts the next. Whether there is one.
    fn next_phase(&mut self, disk: &mut Disk, now_ns: u64) -> bool {
        match self.phase {
            Phase::Write => {
                if let Err(failed) = disk.flush() {
                    serial::line(format_args!("blk: verify FAILED at the flush: status {}", failed.0));
                    return false;
                }
                self.phase = Phase::Read;
                self.left = extents(self.bytes / SECTOR_BYTES as u64, MAX_SECTORS, &mut self.random);
                true
            }
            Phase::Read => {
                let ms = now_ns.saturating_sub(self.started_ns) / 1_000_000;
                serial::line(format_args!("blk: verify ok bytes={} ms={ms}", self.bytes));
                false
            }
        }
    }

    /// Takes a finished request back. Whether the job goes on.
    pub(super) fn take(&mut self, request: Box<Request>) -> bool {
        if let Some(status) = request.failure() {
            let (what, sector) = (request.operation, request.sector);
            serial::line(format_args!(
                "blk: verify FAILED at sector {sector}: {what:?} ended with status {status}"
            ));
            return false;
        }
        if request.operation == Operation::Read
            && let Some(sector) = mismatch(request.data(), self.seed, request.sector)
        {
            serial::line(format_args!("blk: verify FAILED at sector {sector}: it holds something else"));
            return false;
        }
        self.idle.push(request);
        true
    }
}
