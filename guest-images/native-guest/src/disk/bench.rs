//! Random reads or writes for some seconds, at a constant depth.

use super::device::Disk;
use super::request::{Operation, Request};
use crate::clock::Clock;
use crate::serial;
use alloc::boxed::Box;
use alloc::vec::Vec;
use native_guest::latency::Latencies;
use native_guest::pattern::{Random, SECTOR_BYTES, fill};
use native_guest::work::Bench;

/// The job.
pub(super) struct BenchJob {
    work: Bench,
    random: Random,
    #[expect(clippy::vec_box, reason = "a request is handed to the device by its box, without moving")]
    idle: Vec<Box<Request>>,
    latencies: Latencies,
    started_ns: u64,
    last_ns: u64,
}

impl BenchJob {
    pub(super) fn new(work: Bench, now_ns: u64) -> Self {
        let idle = (0..work.depth).map(|_| Request::with_capacity(work.bytes)).collect();
        let (random, latencies) = (Random::new(now_ns), Latencies::default());
        Self { work, random, idle, latencies, started_ns: now_ns, last_ns: now_ns }
    }

    /// Hands over what can be. Whether the job goes on.
    pub(super) fn turn(&mut self, disk: &mut Disk, clock: &mut Clock) -> bool {
        let now = clock.now_ns();
        if now >= self.started_ns + self.work.seconds * 1_000_000_000 {
            return self.idle.len() < self.work.depth || self.report();
        }
        while let Some(mut request) = self.idle.pop() {
            self.prepare(&mut request, disk.sectors());
            request.at_ns = clock.now_ns();
            if let Some(back) = disk.submit(request) {
                self.idle.push(back);
                break;
            }
        }
        disk.announce();
        true
    }

    fn prepare(&mut self, request: &mut Request, sectors: u64) {
        let each = (self.work.bytes / SECTOR_BYTES) as u64;
        let sector = self.random.below((sectors / each).max(1)) * each;
        let first = request.data().is_empty();
        let operation = if self.work.write { Operation::Write } else { Operation::Read };
        request.set(operation, sector, self.work.bytes);
        if self.work.write && first {
            fill(request.data_mut(), self.started_ns, sector);
        }
    }

    /// Takes a finished request back. Whether the job goes on.
    pub(super) fn take(&mut self, request: Box<Request>, now_ns: u64) -> bool {
        if let Some(status) = request.failure() {
            let (what, sector) = (request.operation, request.sector);
            serial::line(format_args!(
                "blk: bench FAILED at sector {sector}: {what:?} ended with status {status}"
            ));
            return false;
        }
        self.latencies.add(now_ns.saturating_sub(request.at_ns));
        self.last_ns = now_ns;
        self.idle.push(request);
        true
    }

    /// Prints the figures; false, since that is the end.
    fn report(&self) -> bool {
        let n = self.latencies.total();
        let elapsed_ns = self.last_ns.saturating_sub(self.started_ns).max(1);
        let iops = u128::from(n) * 1_000_000_000 / u128::from(elapsed_ns);
        let name = if self.work.write { "randwrite" } else { "randread" };
        let [p50, p99] = [50, 99].map(|percent| self.latencies.percentile_us(percent));
        serial::line(format_args!(
            "{{\"blk\":\"{name}\",\"iops\":{iops},\"us_p50\":{}.{},\"us_p99\":{}.{},\"us_max\":{},\"n\":{n},\
             \"depth\":{},\"bytes\":{}}}",
            p50.0,
            p50.1,
            p99.0,
            p99.1,
            self.latencies.max_us(),
            self.work.depth,
            self.work.bytes
        ));
        false
    }
}
