//! Guest memory that is restored while the VM runs: a page comes when it is touched, the rest behind its back.
//!
//! The kernel (userfaultfd) stops whoever touches a missing page, KVM and devices included, and tells us. We fetch the
//! extent around it, which is verified, put it in place and wake who waits. Meanwhile a thread fetches ahead. With the
//! last page the memory is unregistered and is as if it had been filled before the start.
//!
//! # What must be so
//! Until [`LazyProgress::done`], the regions are the only way to the memory: `read`, `write` and `fallocate` on the memfd
//! go past userfaultfd and see holes where pages are missing. So memory must not be saved, replicated by reading the memfd,
//! or zeroed by punching holes before that.
//!
//! # When a page cannot be had
//! Who touched it waits, for there is nothing right to give it; it never sees zeros. [`LazyError`] goes to `on_error`, and
//! the VM is to be stopped. Other pages are still served, so that whoever holds a lock can come to an end.
//!
//! # Ending early
//! 1. Stop the vCPUs and devices while faults are served: kick the vCPUs, wait until they are parked.
//! 2. Drop [`LazyMemory`]. If pages are missing it takes away all access to the regions, and only then wakes who still waits
//!    (for a page that could not be had): `KVM_RUN` fails with `EFAULT`, or exits for MMIO at an address that is RAM where KVM
//!    interprets the instruction, which must not be answered; a thread of ours gets `SIGSEGV`. A process that runs one VM can
//!    as well exit without doing so; the kernel ends those who wait.
//! 3. Unmap the memory. [`Region`] keeps its owner until step 2 is done.
//!
//! To give the memory other contents instead (reset, another snapshot), do step 1 and then [`LazyMemory::release`].

mod error;
mod filler;
mod present;
mod service;
mod userfault;

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

pub use error::{LazyError, StartError};
pub use service::{OnDone, OnError};
pub use userfault::{Region, Userfault, UserfaultError};

use crate::fetch::PageFetch;
use crate::limits::FAULT_THREADS_MAX;
use filler::Filler;
use service::Service;

/// How to restore lazily.
pub struct LazyOptions {
    /// Threads that serve faults, 1 to [`FAULT_THREADS_MAX`]. One is right for a file.
    pub fault_threads: usize,
    /// Called by every thread of the restore, first thing: it may give up rights.
    pub on_thread: fn(),
    /// Told of what cannot be restored, from a thread of the restore. It must not drop the [`LazyMemory`], which
    /// waits for that thread: let it tell another one.
    pub on_error: OnError,
    /// Called once when all pages are there, from a thread of the restore or from [`LazyMemory::start`].
    pub on_done: OnDone,
}

impl fmt::Debug for LazyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyOptions").field("fault_threads", &self.fault_threads).finish_non_exhaustive()
    }
}

/// How far a lazy restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LazyProgress {
    /// Pages of RAM.
    pub total_pages: u64,
    /// Pages that are in place, holes left to the kernel included.
    pub present_pages: u64,
    /// Faults served.
    pub faults: u64,
    /// Half of them took at most this long, microseconds from hearing of them to waking who waited.
    pub fault_us_p50: u64,
    /// 99 of 100 took at most this long, microseconds.
    pub fault_us_p99: u64,
    /// The longest took this long, microseconds.
    pub fault_us_max: u64,
    /// All pages are there, and userfaultfd is out of the way.
    pub done: bool,
    /// Something could not be restored; `on_error` was told what.
    pub failed: bool,
}

/// Memory that is being restored. See the module's text for what that asks of its user.
pub struct LazyMemory {
    service: Arc<Service>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    on_thread: fn(),
    /// Whether memory with missing pages is made inaccessible at the end.
    close_at_end: bool,
}

impl fmt::Debug for LazyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyMemory").field(&self.progress()).finish()
    }
}

impl LazyMemory {
    /// Empties `regions`, in ascending order of pages, and serves their pages from `fetch` from here on. The machine is
    /// parked; it may be resumed when this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        fetch: Arc<dyn PageFetch>,
        regions: Vec<Region>,
        userfault: Userfault,
        options: LazyOptions,
    ) -> Result<LazyMemory, StartError> {
        check(&regions, fetch.pages())?;
        let filler = Filler::new(fetch, userfault, regions);
        let refused = |action| move |source| StartError::Memory { action, source };
        filler.discard().map_err(refused("empty"))?;
        filler.register().map_err(refused("register"))?;
        Self::serve(filler, options)
    }

    fn serve(filler: Filler, options: LazyOptions) -> Result<LazyMemory, StartError> {
        let failed = |source| StartError::Service { source };
        let service = Arc::new(Service::new(filler, options.on_error, options.on_done).map_err(failed)?);
        // Until it has begun, failing leaves memory that can be restored eagerly.
        let mut lazy = LazyMemory {
            service,
            threads: Mutex::default(),
            on_thread: options.on_thread,
            close_at_end: false,
        };
        for _ in 0..options.fault_threads.clamp(1, FAULT_THREADS_MAX) {
            lazy.spawn("lazy-faults", Service::serve_faults).map_err(failed)?;
        }
        lazy.close_at_end = true;
        lazy.service.finish_if_complete();
        Ok(lazy)
    }

    /// As [`LazyMemory::start`], of memory of which all but the pages `missing` are in place: what else the regions hold
    /// stays. `missing` is in ascending order and does not overlap. Pages may also be given by [`LazyMemory::supply`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_partly(
        fetch: Arc<dyn PageFetch>,
        regions: Vec<Region>,
        missing: &[Range<u64>],
        userfault: Userfault,
        options: LazyOptions,
    ) -> Result<LazyMemory, StartError> {
        check(&regions, fetch.pages())?;
        check_missing(missing, fetch.pages())?;
        let filler = Filler::new(fetch, userfault, regions);
        let refused = |action| move |source| StartError::Memory { action, source };
        filler.discard_parts(missing).map_err(refused("empty"))?;
        filler.register_around(missing).map_err(refused("register"))?;
        Self::serve(filler, options)
    }

    /// Puts a page in place that nobody asked for; `None` is a page of zeros. One that is there already stays as it is.
    ///
    /// # Errors
    /// [`LazyError::Place`].
    pub fn supply(&self, page: u64, contents: Option<&[u8]>) -> Result<(), LazyError> {
        self.service.filler.supply(page, contents)?;
        self.service.finish_if_complete();
        Ok(())
    }

    /// Begins to fetch all other pages in their order, between faults and at most at `bytes_per_s`. To be called once, when
    /// the VM runs; without it pages come only as they are touched.
    ///
    /// # Errors
    /// [`StartError::Service`].
    pub fn prefetch(&self, bytes_per_s: Option<NonZeroU64>) -> Result<(), StartError> {
        let spawned = self.spawn("lazy-prefetch", move |service| service.prefetch(bytes_per_s));
        spawned.map_err(|source| StartError::Service { source })
    }

    /// How far it is.
    pub fn progress(&self) -> LazyProgress {
        let (faults, [fault_us_p50, fault_us_p99, fault_us_max]) = self.service.latency_us();
        LazyProgress {
            total_pages: self.service.filler.total_pages(),
            present_pages: self.service.filler.present_pages(),
            faults,
            fault_us_p50,
            fault_us_p99,
            fault_us_max,
            done: self.service.is_done(),
            failed: self.service.has_failed(),
        }
    }

    /// Waits until all pages are there, at most `timeout`. Returns whether they are.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.service.wait_done(timeout)
    }

    /// Ends the restore and leaves missing pages zero, for memory that is about to get other contents. Nothing may be using
    /// it: whoever still waits for a page sees zeros.
    pub fn release(mut self) {
        self.close_at_end = false;
    }

    fn spawn(&self, name: &str, body: impl FnOnce(&Service) + Send + 'static) -> std::io::Result<()> {
        let service = Arc::clone(&self.service);
        let on_thread = self.on_thread;
        let body = move || {
            on_thread();
            body(&service);
        };
        let thread = Builder::new().name(name.into()).spawn(body)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    fn end(&self) {
        self.service.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic in it was reported when it happened.
            drop(thread.join());
        }
        if self.service.is_done() {
            return;
        }
        for region in self.service.filler.regions() {
            let userfault = self.service.filler.userfault();
            let closed = if self.close_at_end { userfault.close(region) } else { Ok(()) };
            // Memory that cannot be closed stays registered: better to wait than to see zeros.
            if let Err(error) = closed.and_then(|()| userfault.unregister(region)) {
                tracing::error!(?region, %error, "memory with missing pages could not be taken down");
            }
        }
    }
}

impl Drop for LazyMemory {
    fn drop(&mut self) {
        self.end();
    }
}

fn check_missing(missing: &[Range<u64>], pages: u64) -> Result<(), StartError> {
    let sorted = missing.is_sorted_by(|a, b| a.end <= b.start);
    let inside = missing.iter().all(|range| !range.is_empty() && range.end <= pages);
    if sorted && inside {
        return Ok(());
    }
    let reason = format!("the missing pages are out of order or not all of them among {pages}");
    Err(StartError::Regions { reason })
}

fn check(regions: &[Region], pages: u64) -> Result<(), StartError> {
    let refuse = |reason| Err(StartError::Regions { reason });
    if !regions.is_sorted_by(|a, b| a.end() <= b.first_page()) {
        return refuse(format!("the regions overlap or are out of order: {regions:?}"));
    }
    match regions.last().map_or(0, Region::end) {
        end if end == pages => Ok(()),
        end => refuse(format!("{pages} pages were saved, memory has {end}")),
    }
}
