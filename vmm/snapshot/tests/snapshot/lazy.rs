//! Memory that comes as it is touched.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use endophyte_snapshot::lazy::{LazyError, LazyMemory, LazyOptions, StartError, Userfault};
use endophyte_snapshot::{Extent, FetchError, Fetched, PageFetch};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{Bytes, WriteVolatile};

use crate::support::{Mapping, PAGE, Ram, Saved};

const LONG: Duration = Duration::from_secs(60);
/// 64 MiB.
const PAGES: u64 = 16384;

/// A userfaultfd, or the reason why the test is skipped.
pub(crate) fn userfault() -> Option<Userfault> {
    Userfault::open().inspect_err(|error| eprintln!("SKIPPED: {error}")).ok()
}

pub(crate) fn start(
    fetch: Arc<dyn PageFetch>,
    mapping: &Arc<Mapping>,
    userfault: Userfault,
) -> (LazyMemory, Receiver<LazyError>) {
    let (tell, told) = channel();
    let on_error = Box::new(move |error| drop(tell.send(error)));
    let options = LazyOptions { fault_threads: 1, on_thread: || (), on_error, on_done: Box::new(|| ()) };
    (LazyMemory::start(fetch, mapping.regions(), userfault, options).unwrap(), told)
}

/// Several threads touch all pages, each in an order of its own, and compare.
fn touch_all(ram: &Ram, mapping: &Mapping) {
    thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut order: Vec<_> = (0..ram.pages).collect();
                order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
                for page in order {
                    assert!(mapping.page(page) == ram.page(page), "page {page}");
                }
            });
        }
    });
}

#[test]
fn memory_touched_in_any_order_by_any_thread_is_what_was_saved() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::random(PAGES, 5, 1);
    let saved = Saved::of(&ram);
    // What it held before must not show.
    let restored = Ram::random(PAGES, 3, 2);
    let mapping = restored.map();
    let (lazy, told) = start(Arc::new(saved.open()), &mapping, userfault);
    assert!(lazy.progress().present_pages < PAGES / 4, "{lazy:?}");
    touch_all(&ram, &mapping);
    assert!(lazy.wait(LONG), "{lazy:?}");
    let progress = lazy.progress();
    assert!(progress.done && !progress.failed && progress.faults > 100, "{progress:?}");
    assert_eq!((progress.present_pages, progress.total_pages), (PAGES, PAGES));
    assert!(progress.fault_us_p50 <= progress.fault_us_p99 && progress.fault_us_p99 <= progress.fault_us_max);
    assert!(told.try_recv().is_err());
    drop(lazy);
    touch_all(&ram, &mapping);
}

#[test]
fn what_the_guest_writes_is_not_overwritten_by_the_prefetcher() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::random(PAGES, 7, 3);
    let saved = Saved::of(&ram);
    let restored = Ram::new(PAGES);
    let mapping = restored.map();
    let (lazy, _told) = start(Arc::new(saved.open()), &mapping, userfault);
    lazy.prefetch(None).unwrap();
    let written: Vec<_> = (0..PAGES).rev().step_by(7).collect();
    for page in &written {
        mapping.slice(*page).write_slice(&[0xee; 100], 50).unwrap();
    }
    assert!(lazy.wait(LONG), "{lazy:?}");
    for page in 0..PAGES {
        let mut expected = ram.page(page);
        if written.contains(&page) {
            expected[50..150].fill(0xee);
        }
        assert!(mapping.page(page) == expected, "page {page}");
    }
}

#[test]
fn the_prefetcher_completes_an_idle_vm_at_its_rate_and_leaves_large_holes_unfilled() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::new(PAGES);
    // 8 MiB of contents, then a hole of 56 MiB.
    (0..2048).for_each(|page| ram.write(page, &[3; PAGE]));
    let saved = Saved::of(&ram);
    let restored = Ram::new(PAGES);
    let mapping = restored.map();
    let (lazy, _told) = start(Arc::new(saved.open()), &mapping, userfault);
    assert_eq!(lazy.progress().present_pages, PAGES - 2048);
    let begun = Instant::now();
    lazy.prefetch(NonZeroU64::new(64 << 20)).unwrap();
    assert!(lazy.wait(LONG), "{lazy:?}");
    // An eighth of a second, less the first extent, which nothing precedes.
    assert!(begun.elapsed() >= Duration::from_millis(110), "{:?}", begun.elapsed());
    assert_eq!(lazy.progress().faults, 0);
    let held = rustix::fs::fstat(&restored.memfd).unwrap().st_blocks * 512;
    assert!(held <= (8 << 20) + (1 << 20), "{held} bytes");
    assert!(mapping.page(2047) == [3; PAGE] && mapping.page(9000) == [0; PAGE]);
}

/// The pages of a [`Ram`], which others have still to be asked for.
struct Elsewhere(Ram);

impl PageFetch for Elsewhere {
    fn extent(&self, page: u64) -> Extent {
        Extent { first_page: page, pages: 1, zeros: false }
    }

    fn fetch(&self, first_page: u64, into: &mut [u8]) -> Result<Fetched, FetchError> {
        into.copy_from_slice(&self.0.page(first_page));
        Ok(Fetched::Data)
    }

    fn pages(&self) -> u64 {
        self.0.pages
    }
}

#[test]
fn pages_that_are_here_stay_and_missing_ones_come_when_touched_or_given() {
    let Some(userfault) = userfault() else { return };
    let (here, elsewhere) = (Ram::random(PAGES, 5, 11), Ram::random(PAGES, 5, 12));
    let missing = [3..40, 600..601, 5000..9000, PAGES - 1..PAGES];
    let is_missing = |page: u64| missing.iter().any(|range| range.contains(&page));
    let expected: Vec<_> = (0..PAGES)
        .map(|page| if is_missing(page) { elsewhere.page(page) } else { here.page(page) })
        .collect();
    let mapping = here.map();
    let options = LazyOptions {
        fault_threads: 4,
        on_error: Box::new(|error| panic!("{error}")),
        on_done: Box::new(|| ()),
    };
    let fetch = Arc::new(Elsewhere(Ram { memfd: elsewhere.memfd.try_clone().unwrap(), pages: PAGES }));
    let lazy = LazyMemory::start_partly(fetch, mapping.regions(), &missing, userfault, options).unwrap();
    assert_eq!(lazy.progress().present_pages, PAGES - 37 - 1 - 4000 - 1);
    // What was here is untouched, holes included, and touching it asks nobody.
    (0..PAGES).filter(|page| !is_missing(*page)).step_by(3).for_each(|page| {
        assert!(mapping.page(page) == expected[usize::try_from(page).unwrap()], "page {page}");
    });
    assert!(!lazy.progress().done);
    for (page, contents) in (0..).zip(&expected) {
        match page % 3 {
            0 if is_missing(page) => assert!(mapping.page(page) == *contents, "page {page}"),
            // A page that is here is not overwritten by one that comes late.
            _ if !is_missing(page) => lazy.supply(page, Some(&[0xaa; PAGE])).unwrap(),
            _ if *contents == [0; PAGE] => lazy.supply(page, None).unwrap(),
            _ => lazy.supply(page, Some(contents)).unwrap(),
        }
    }
    assert!(lazy.wait(LONG), "{lazy:?}");
    (0..).zip(&expected).for_each(|(page, contents)| assert!(mapping.page(page) == *contents, "page {page}"));
}

/// Pages that cannot be had from where they are.
struct Nowhere {
    pages: u64,
    asked: Mutex<std::sync::mpsc::Sender<u64>>,
    fail: Mutex<Receiver<()>>,
}

impl PageFetch for Nowhere {
    fn extent(&self, page: u64) -> Extent {
        Extent { first_page: page, pages: 1, zeros: false }
    }

    fn fetch(&self, first_page: u64, _: &mut [u8]) -> Result<Fetched, FetchError> {
        self.asked.lock().unwrap().send(first_page).unwrap();
        self.fail.lock().unwrap().recv().unwrap();
        Err(FetchError { first_page, source: "gone".into() })
    }

    fn pages(&self) -> u64 {
        self.pages
    }
}

/// A guest was once declared lost because a fetch failed whose page had come by itself.
#[test]
fn a_fetch_that_fails_after_its_page_was_given_harms_nobody() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::new(64);
    let mapping = ram.map();
    let ((asked, asks), (fail, fails)) = (channel(), channel());
    let fetch = Nowhere { pages: 64, asked: Mutex::new(asked), fail: Mutex::new(fails) };
    let (tell, told) = channel();
    let on_error = Box::new(move |error: LazyError| drop(tell.send(error)));
    let options = LazyOptions { fault_threads: 1, on_error, on_done: Box::new(|| ()) };
    let missing = [7..8, 8..9];
    let lazy =
        LazyMemory::start_partly(Arc::new(fetch), mapping.regions(), &missing, userfault, options).unwrap();
    let touched = touch_as_kvm_does(&mapping, 7);
    assert_eq!(asks.recv_timeout(LONG), Ok(7));
    lazy.supply(7, Some(&[5; PAGE])).unwrap();
    assert_eq!(touched.recv_timeout(LONG), Ok(Ok(())));
    fail.send(()).unwrap();
    lazy.supply(8, None).unwrap();
    assert!(lazy.wait(LONG), "{lazy:?}");
    assert!(mapping.page(7) == [5; PAGE] && mapping.page(8) == [0; PAGE]);
    drop(lazy);
    assert!(told.try_recv().is_err());
}

#[test]
fn missing_pages_that_make_no_sense_are_refused() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::new(64);
    let options = LazyOptions { fault_threads: 1, on_error: Box::new(|_| ()), on_done: Box::new(|| ()) };
    let fetch = Arc::new(Elsewhere(Ram::new(64)));
    let started = LazyMemory::start_partly(fetch, ram.map().regions(), &[5..9, 8..10], userfault, options);
    assert!(matches!(started, Err(StartError::Regions { .. })), "{started:?}");
}

/// Touches a page from within the kernel; says when and how that ended.
fn touch_as_kvm_does(mapping: &Arc<Mapping>, page: u64) -> Receiver<Result<(), String>> {
    let (tell, told) = channel();
    let mapping = Arc::clone(mapping);
    thread::spawn(move || {
        let (_reader, writer) = std::io::pipe().unwrap();
        let written = File::from(OwnedFd::from(writer)).write_volatile(&mapping.slice(page));
        drop(tell.send(written.map(|_| ()).map_err(|error| error.to_string())));
    });
    told
}

#[test]
fn a_damaged_page_is_reported_and_nobody_gets_it() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::random(PAGES, 10, 4);
    let saved = Saved::of(&ram);
    saved.damage(&ram, 5000);
    let restored = Ram::new(PAGES);
    let mapping = restored.map();
    let (lazy, told) = start(Arc::new(saved.open()), &mapping, userfault);
    let got = touch_as_kvm_does(&mapping, 5000);
    let error = told.recv_timeout(LONG).unwrap();
    assert!(matches!(&error, LazyError::Fetch { wanted: true, .. }), "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
    // All other pages are still served.
    for page in [0, 4000, 5300, PAGES - 1] {
        assert!(mapping.page(page) == ram.page(page), "page {page}");
    }
    assert!(got.try_recv().is_err(), "the page that could not be restored was handed out");
    let progress = lazy.progress();
    assert!(progress.failed && !progress.done, "{progress:?}");
    // Taken down, the access fails; it does not succeed with zeros.
    drop(lazy);
    let answer = got.recv_timeout(LONG).unwrap();
    assert!(answer.as_ref().is_err_and(|error| error.contains("Bad address")), "{answer:?}");
}

#[test]
fn the_prefetcher_reports_a_damaged_page_before_the_guest_needs_it() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::random(1000, 10, 5);
    let saved = Saved::of(&ram);
    saved.damage(&ram, 500);
    let restored = Ram::new(1000);
    let mapping = restored.map();
    let (lazy, told) = start(Arc::new(saved.open()), &mapping, userfault);
    lazy.prefetch(None).unwrap();
    let error = told.recv_timeout(LONG).unwrap();
    assert!(matches!(&error, LazyError::Fetch { wanted: false, .. }), "{error}");
    assert!(!lazy.progress().done);
}

#[test]
fn released_memory_can_be_given_other_contents() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::random(1000, 10, 6);
    let saved = Saved::of(&ram);
    let restored = Ram::new(1000);
    let mapping = restored.map();
    let (lazy, _told) = start(Arc::new(saved.open()), &mapping, userfault);
    assert!(mapping.page(10) == ram.page(10));
    lazy.release();
    saved.open().load_all(&restored.memory(), &mut |_, _| ()).unwrap();
    touch_all(&ram, &mapping);
}

#[test]
fn a_page_given_back_by_the_guest_is_zero_and_not_restored_again() {
    let Some(userfault) = userfault() else { return };
    let ram = Ram::random(1000, 10, 7);
    let saved = Saved::of(&ram);
    let restored = Ram::new(1000);
    let mapping = restored.map();
    let (lazy, _told) = start(Arc::new(saved.open()), &mapping, userfault);
    assert!(mapping.page(10) == ram.page(10));
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&restored.memfd, mode, 10 * PAGE as u64, PAGE as u64).unwrap();
    assert_eq!(mapping.page(10), [0; PAGE]);
    drop(lazy);
}

#[test]
fn a_handed_over_device_serves_and_another_file_is_refused() {
    let Ok(device) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") else {
        return eprintln!("SKIPPED: no /dev/userfaultfd");
    };
    let userfault = Userfault::from_device(device.as_fd()).unwrap();
    let ram = Ram::random(300, 5, 8);
    let saved = Saved::of(&ram);
    let restored = Ram::new(300);
    let mapping = restored.map();
    let (lazy, _told) = start(Arc::new(saved.open()), &mapping, userfault);
    touch_all(&ram, &mapping);
    assert!(lazy.wait(LONG));
    let file = tempfile::tempfile().unwrap();
    assert!(Userfault::from_device(file.as_fd()).is_err());
    assert!(Userfault::from_made(file.into()).is_err());
}

#[test]
fn memory_of_another_size_is_refused_and_untouched() {
    let Some(userfault) = userfault() else { return };
    let saved = Saved::of(&Ram::random(300, 5, 9));
    let other = Ram::random(301, 10, 10);
    let mapping = other.map();
    let options = LazyOptions {
        fault_threads: 1,
        on_thread: || (),
        on_error: Box::new(|_| ()),
        on_done: Box::new(|| ()),
    };
    let refused = LazyMemory::start(Arc::new(saved.open()), mapping.regions(), userfault, options);
    assert!(matches!(refused, Err(StartError::Regions { .. })), "{refused:?}");
    assert!(mapping.page(300) == other.page(300) && other.page(300) != [0; PAGE]);
}

/// A source like a network: it does not know what is zero, and answers when it is let.
struct Slow {
    pages: u64,
    open: Mutex<bool>,
    opened: Condvar,
}

impl PageFetch for Slow {
    fn extent(&self, page: u64) -> Extent {
        let first_page = page / 16 * 16;
        Extent { first_page, pages: 16.min(self.pages - first_page), zeros: false }
    }

    fn fetch(&self, first_page: u64, into: &mut [u8]) -> Result<Fetched, FetchError> {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open && first_page < 16).unwrap());
        into.fill(9);
        Ok(if first_page.is_multiple_of(32) { Fetched::Data } else { Fetched::Zeros })
    }

    fn pages(&self) -> u64 {
        self.pages
    }
}

/// Regression: a thread read several faults at once and then waited for the pages of the first. The two touches
/// below have to arrive together for that, so it is tried a few times.
#[test]
fn a_fault_does_not_wait_for_another_ones_source_while_a_thread_is_idle() {
    for _ in 0..20 {
        let Some(userfault) = userfault() else { return };
        let source = Arc::new(Slow { pages: 1000, open: Mutex::new(false), opened: Condvar::new() });
        let mapping = Ram::new(1000).map();
        let options = LazyOptions {
            fault_threads: 2,
            on_thread: || (),
            on_error: Box::new(|error| panic!("{error}")),
            on_done: Box::new(|| ()),
        };
        let fetch = Arc::<Slow>::clone(&source);
        let lazy = LazyMemory::start(fetch, mapping.regions(), userfault, options).unwrap();
        let [waits, goes] = [3, 100].map(|page| touch_as_kvm_does(&mapping, page));
        goes.recv_timeout(LONG).unwrap().unwrap();
        assert!(waits.try_recv().is_err());
        *source.open.lock().unwrap() = true;
        source.opened.notify_all();
        waits.recv_timeout(LONG).unwrap().unwrap();
        lazy.release();
    }
}

#[test]
fn another_source_serves_faults_past_one_that_waits() {
    let Some(userfault) = userfault() else { return };
    let source = Arc::new(Slow { pages: 1000, open: Mutex::new(false), opened: Condvar::new() });
    let restored = Ram::new(1000);
    let mapping = restored.map();
    let options = LazyOptions {
        fault_threads: 2,
        on_thread: || (),
        on_error: Box::new(|error| panic!("{error}")),
        on_done: Box::new(|| ()),
    };
    let fetch = Arc::<Slow>::clone(&source);
    let lazy = LazyMemory::start(fetch, mapping.regions(), userfault, options).unwrap();
    let waits = touch_as_kvm_does(&mapping, 3);
    for page in 16..1000 {
        let expected = if page / 16 % 2 == 0 { 9 } else { 0 };
        assert_eq!(mapping.page(page), [expected; PAGE], "page {page}");
    }
    assert!(matches!(waits.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout)));
    *source.open.lock().unwrap() = true;
    source.opened.notify_all();
    waits.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(mapping.page(3), [9; PAGE]);
    assert!(lazy.wait(LONG), "{lazy:?}");
}
