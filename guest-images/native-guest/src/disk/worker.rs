//! The disk as the rest of the guest sees it: jobs from the command line, sectors for RESP.

use super::bench::BenchJob;
use super::device::{Disk, Failed};
use super::misc;
use super::request::{Operation, Request};
use super::verify::Verify;
use crate::clock::Clock;
use crate::virtio::{Bus, DeviceError};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use native_guest::pattern::SECTOR_BYTES;
use native_guest::work::DiskWork;
use resp_kv::HostRefusal;
use virtio_drivers::transport::pci::bus::DeviceFunction;

/// Requests taken back per turn: bounds the time a fast disk keeps everything else waiting.
const TURN_REQUESTS: usize = 64;

enum Job {
    Verify(Verify),
    Bench(BenchJob),
}

/// The disk and what it is to do.
pub(crate) struct DiskWorker {
    disk: Disk,
    job: Option<Job>,
    queue: VecDeque<DiskWork>,
}

impl DiskWorker {
    /// Opens the disk, with work to do one after the other.
    ///
    /// # Panics
    /// If the disk is smaller than the work needs.
    pub(crate) fn new(bus: &mut Bus, work: &[DiskWork]) -> Result<Self, DeviceError> {
        let disk = Disk::new(bus)?;
        let needed = work.iter().map(|work| match work {
            DiskWork::Verify { bytes, .. } => *bytes,
            DiskWork::Bench(bench) => bench.bytes as u64,
            DiskWork::Misc => misc::NEEDED_BYTES,
        });
        let (needed, sectors) = (needed.max().unwrap_or(0), disk.sectors());
        let has = sectors.saturating_mul(SECTOR_BYTES as u64);
        assert!(has >= needed, "blk: the disk has {has} bytes, {needed} are needed");
        Ok(Self { disk, job: None, queue: work.iter().copied().collect() })
    }

    /// Opens the disk at an address, with nothing to do.
    pub(crate) fn at(bus: &mut Bus, at: DeviceFunction) -> Result<Self, DeviceError> {
        Ok(Self { disk: Disk::at(bus, at)?, job: None, queue: VecDeque::new() })
    }

    /// Sectors of the disk.
    pub(crate) fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    /// Goes on with the work. Whether anything happened.
    pub(crate) fn turn(&mut self, clock: &mut Clock) -> bool {
        let taken = self.take(clock);
        let started = self.start(clock);
        let goes_on = match &mut self.job {
            Some(Job::Verify(verify)) => verify.turn(&mut self.disk, clock.now_ns()),
            Some(Job::Bench(bench)) => bench.turn(&mut self.disk, clock),
            None => return taken || started,
        };
        if !goes_on {
            self.job = None;
        }
        taken || started || !goes_on
    }

    /// Gives finished requests to the job. Whether there were any.
    fn take(&mut self, clock: &mut Clock) -> bool {
        for taken in 0..TURN_REQUESTS {
            let Some(request) = self.disk.complete() else { return taken > 0 };
            let goes_on = match &mut self.job {
                Some(Job::Verify(verify)) => verify.take(request),
                Some(Job::Bench(bench)) => bench.take(request, clock.now_ns()),
                // Of a job that gave up.
                None => false,
            };
            if !goes_on {
                self.job = None;
            }
        }
        true
    }

    fn start(&mut self, clock: &mut Clock) -> bool {
        if self.job.is_some() {
            return false;
        }
        let Some(work) = self.queue.pop_front() else { return false };
        let now = clock.now_ns();
        match work {
            DiskWork::Verify { bytes, seed } => {
                self.job = Some(Job::Verify(Verify::new(bytes, seed.unwrap_or(now), now)));
            }
            DiskWork::Bench(bench) => self.job = Some(Job::Bench(BenchJob::new(bench, now))),
            DiskWork::Misc => misc::run(&mut self.disk),
        }
        true
    }

    /// What a sector holds. Waits for the disk.
    pub(crate) fn read(&mut self, sector: u64) -> Result<[u8; SECTOR_BYTES], HostRefusal> {
        let done = self.one(Operation::Read, sector, 0)?;
        Ok(done.data().try_into().unwrap_or([0; SECTOR_BYTES]))
    }

    /// Fills a sector with one byte. Waits for the disk.
    pub(crate) fn write(&mut self, sector: u64, byte: u8) -> Result<(), HostRefusal> {
        self.one(Operation::Write, sector, byte).map(|_| ())
    }

    /// Makes what was written last. Waits for the disk.
    pub(crate) fn flush(&mut self) -> Result<(), HostRefusal> {
        self.disk.flush().map_err(|Failed(status)| HostRefusal::Disk { status })
    }

    fn one(&mut self, operation: Operation, sector: u64, byte: u8) -> Result<Box<Request>, HostRefusal> {
        let sectors = self.disk.sectors();
        if sector >= sectors {
            return Err(HostRefusal::NoSector { sector, sectors });
        }
        let mut request = Request::with_capacity(SECTOR_BYTES);
        request.set(operation, sector, SECTOR_BYTES);
        request.data_mut().fill(byte);
        self.disk.wait_for(request).map_err(|Failed(status)| HostRefusal::Disk { status })
    }

    /// Switches interrupts on for a sleep. Whether sleeping is right.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.disk.prepare_sleep()
    }

    /// Switches interrupts off again.
    pub(crate) fn end_sleep(&mut self) {
        self.disk.end_sleep();
    }
}
