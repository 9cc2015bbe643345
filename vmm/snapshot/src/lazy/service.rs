//! The threads: some serve faults, one fetches ahead when none waits.
//!
//! ```text
//!                 fault served, page fetched ahead            all pages there
//!   serving ────────────────────────────────────> serving ─────────────────────> done
//!      │ LazyMemory dropped
//!      └──────────────────> stopped
//! ```

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::error::LazyError;
use super::filler::{Filler, buffer};
use crate::limits::{ERRORS_REPORTED_MAX, FAULT_US_MAX, PAGE_BYTES, ZERO_PAGES_PER_TURN};

/// Called from the threads of the restore with what it cannot do.
pub type OnError = Box<dyn Fn(LazyError) + Send + Sync>;

/// Called when nothing is left to restore.
pub type OnDone = Box<dyn Fn() + Send + Sync>;

/// How far things are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Serving,
    Done,
    Stopped,
}

#[derive(Debug, Default)]
struct Gate {
    phase: Phase,
    /// Threads that serve a fault right now.
    serving: usize,
}

/// What the threads share.
pub(super) struct Service {
    pub(super) filler: Filler,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// Readable from the end on; never read, so that it wakes every thread.
    end: OwnedFd,
    latency_us: Mutex<Histogram<u64>>,
    on_error: OnError,
    on_done: OnDone,
    reported: Mutex<BTreeSet<u64>>,
}

impl Service {
    pub(super) fn new(filler: Filler, on_error: OnError, on_done: OnDone) -> std::io::Result<Service> {
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let latency_us = Histogram::new_with_max(FAULT_US_MAX, 2).map_err(std::io::Error::other)?;
        Ok(Service {
            filler,
            gate: Mutex::default(),
            changed: Condvar::new(),
            end,
            latency_us: Mutex::new(latency_us),
            on_error,
            on_done,
            reported: Mutex::default(),
        })
    }

    /// Body of a thread that serves faults.
    pub(super) fn serve_faults(&self) {
        self.guarded(|| {
            let mut buffer = buffer();
            while self.wait_for_fault()? {
                let Some(begun) = self.begin() else { return Ok(()) };
                if let Some(address) = self.filler.userfault().fault()? {
                    self.serve(address, begun, &mut buffer);
                }
                self.rest();
            }
            Ok(())
        });
    }

    /// Body of the thread that fetches ahead.
    pub(super) fn prefetch(&self, bytes_per_s: Option<NonZeroU64>) {
        self.guarded(|| {
            let mut buffer = buffer();
            let mut due = Instant::now();
            for region in self.filler.regions() {
                let mut page = region.first_page();
                while page < region.end() {
                    if !self.quiet(due) {
                        return Ok(());
                    }
                    let before = self.filler.present_pages();
                    match self.filler.advance(region, page, ZERO_PAGES_PER_TURN, &mut buffer) {
                        Ok(next) => page = next,
                        Err(error) => {
                            self.report(error);
                            return Ok(());
                        }
                    }
                    due = due.max(Instant::now()) + cost(self.filler.present_pages() - before, bytes_per_s);
                    self.finish_if_complete();
                }
            }
            Ok(())
        });
    }

    /// Runs a thread's body; however it fails, the VM hears of it.
    fn guarded(&self, body: impl FnOnce() -> std::io::Result<()>) {
        let reason = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a thread of the restore panicked".to_owned(),
        };
        self.report(LazyError::Service { reason });
    }

    /// False at the end.
    fn wait_for_fault(&self) -> std::io::Result<bool> {
        let userfault = self.filler.userfault().fd();
        let mut fds = [userfault, self.end.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(fds[1].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }

    fn serve(&self, address: usize, begun: Instant, buffer: &mut Vec<u8>) {
        let Some((region, page)) = self.filler.page_at(address) else {
            return self
                .report(LazyError::Service { reason: format!("a fault at {address:#x}, outside memory") });
        };
        match self.filler.serve(region, page, buffer) {
            Ok(()) => {
                let us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                lock(&self.latency_us).saturating_record(us);
                self.finish_if_complete();
            }
            // Who waits for this page goes on waiting: there is nothing right to give it.
            Err(error) => self.report(error),
        }
    }

    /// Faults go first from here on. `None` at the end.
    fn begin(&self) -> Option<Instant> {
        let mut gate = lock(&self.gate);
        gate.serving += 1;
        (gate.phase == Phase::Serving).then(Instant::now)
    }

    fn rest(&self) {
        lock(&self.gate).serving -= 1;
        self.changed.notify_all();
    }

    /// Waits until `due`, and until no fault is being served; false at the end.
    fn quiet(&self, due: Instant) -> bool {
        let mut gate = lock(&self.gate);
        while gate.phase == Phase::Serving {
            let early = due.saturating_duration_since(Instant::now());
            gate = match (gate.serving, early) {
                (0, Duration::ZERO) => return true,
                (0, early) => {
                    self.changed.wait_timeout(gate, early).unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner),
            };
        }
        false
    }

    /// With the last page in place, memory is memory again.
    pub(super) fn finish_if_complete(&self) {
        if self.filler.present_pages() < self.filler.total_pages() {
            return;
        }
        let mut gate = lock(&self.gate);
        if gate.phase != Phase::Serving {
            return;
        }
        gate.phase = Phase::Done;
        drop(gate);
        for region in self.filler.regions() {
            if let Err(error) = self.filler.userfault().unregister(region) {
                // All pages are there, so nobody waits; the rest happens when the descriptor is closed.
                tracing::warn!(?region, %error, "memory that was restored lazily could not be unregistered");
            }
        }
        (self.on_done)();
        self.wake_all();
    }

    /// Ends the threads, if the restore is not done.
    pub(super) fn stop(&self) {
        let mut gate = lock(&self.gate);
        if gate.phase == Phase::Serving {
            gate.phase = Phase::Stopped;
        }
        drop(gate);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.changed.notify_all();
        if let Err(error) = rustix::io::write(&self.end, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the threads of a lazy restore could not be told to end");
        }
    }

    pub(super) fn is_done(&self) -> bool {
        lock(&self.gate).phase == Phase::Done
    }

    /// Waits until the restore is done, at most `timeout`; says whether it is.
    pub(super) fn wait_done(&self, timeout: Duration) -> bool {
        let serving = |gate: &mut Gate| gate.phase == Phase::Serving;
        let waited = self.changed.wait_timeout_while(lock(&self.gate), timeout, serving);
        waited.unwrap_or_else(PoisonError::into_inner).0.phase == Phase::Done
    }

    /// Number of faults served, and their latency at the 50th and 99th percentile and at most, microseconds.
    pub(super) fn latency_us(&self) -> (u64, [u64; 3]) {
        let all = lock(&self.latency_us);
        (all.len(), [all.value_at_quantile(0.5), all.value_at_quantile(0.99), all.max()])
    }

    fn report(&self, error: LazyError) {
        tracing::error!(%error, "lazy restore");
        let key = match &error {
            LazyError::Fetch { page, .. } | LazyError::Place { page, .. } => *page,
            LazyError::Service { .. } => u64::MAX,
        };
        let mut reported = lock(&self.reported);
        let news = reported.len() < ERRORS_REPORTED_MAX && reported.insert(key);
        drop(reported);
        if news {
            (self.on_error)(error);
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        !lock(&self.reported).is_empty()
    }
}

/// Time that so many pages may take at most this fast.
fn cost(pages: u64, bytes_per_s: Option<NonZeroU64>) -> Duration {
    let bytes = pages.saturating_mul(PAGE_BYTES as u64);
    bytes_per_s.map_or(Duration::ZERO, |rate| {
        Duration::from_nanos(bytes.saturating_mul(1_000_000_000 / 1024) / rate.get().div_ceil(1024))
    })
}

/// A thread that panicked has been reported; what it left is still consistent, for every change is one statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
