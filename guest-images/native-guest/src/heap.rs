//! The heap: all RAM the loader reports above the image, under one allocator.

use crate::boot::MemoryMap;
use crate::paging;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};
use native_guest::memmap::heap_parts;
use talc::TalcLock;
use talc::lock_api::{GuardNoSend, RawMutex};
use talc::source::Manual;

#[global_allocator]
static HEAP: TalcLock<OneThread, Manual> = TalcLock::new(Manual);

/// The lock of a program with one thread and no interrupts: never contended, so taking it twice is a bug.
struct OneThread(AtomicBool);

// SAFETY: `lock` returns only after it changed the flag from false to true, and panics where it was true already,
// so there is never more than one holder.
unsafe impl RawMutex for OneThread {
    const INIT: Self = Self(AtomicBool::new(false));

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        assert!(self.try_lock(), "the heap was entered twice");
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Takes over all RAM of the map. To be called once, when nothing the loader left is needed any more.
pub(crate) fn claim(map: &MemoryMap) {
    for entry in map.entries() {
        claim_range(&heap_parts(entry)[0]);
    }
    // Memory above 4 GiB needs page tables, which come from the heap below.
    for entry in map.entries() {
        let high = &heap_parts(entry)[1];
        if !high.is_empty() && paging::map_high(high) {
            claim_range(high);
        }
    }
}

fn claim_range(range: &Range<u64>) {
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else { return };
    if start >= end {
        return;
    }
    // SAFETY: the range is RAM by the loader's map, is mapped, lies above the image and everything else static
    // (`heap_parts`), and is claimed once, since map entries do not overlap and this runs once.
    let _ = unsafe { HEAP.lock().claim(ptr::with_exposed_provenance_mut(start), end - start) };
}

/// Bytes of RAM the heap has, and bytes of it in use.
pub(crate) fn usage() -> (u64, u64) {
    let heap = HEAP.lock();
    let counters = heap.counters();
    (counters.claimed_bytes as u64, counters.allocated_bytes as u64)
}
