//! What ring 3 changes in the page tables of `boot.S`: a hole below the stack, and memory above 4 GiB.
//!
//! Both only ever turn entries that nothing has used yet, so no TLB entry needs to be dropped, which only ring 0
//! could do.

use alloc::alloc::{Layout, alloc_zeroed};
use core::ops::Range;
use native_guest::memmap::{MAP_LIMIT, STATIC_MAP_BYTES};

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const TABLE: u64 = 0x7; // present, writable, user
const LARGE: u64 = 0xe7; // the same, accessed, dirty, large

unsafe extern "C" {
    static mut first_2m: [u64; 512];
    static mut pdpt: [u64; 512];
    static boot_stack_guard: u8;
}

/// Takes the page below the stack out of the map, so that overflowing it faults instead of corrupting data.
pub(crate) fn guard_stack() {
    let page = (&raw const boot_stack_guard).addr() >> 12;
    // SAFETY: `first_2m` is the live table of the first 512 pages and link.ld keeps the image below them, so the
    // index is in range and names the guard page; nothing uses that page, so nothing breaks when it is gone.
    unsafe { (&raw mut first_2m).cast::<u64>().add(page & 511).write_volatile(0) }
}

/// Maps the gigabytes around `range`, which lies above the static map. Whether there was memory for the tables.
pub(crate) fn map_high(range: &Range<u64>) -> bool {
    let mut gib = range.start.max(STATIC_MAP_BYTES) / GIB;
    while gib * GIB < range.end.min(MAP_LIMIT) {
        if !map_gib(gib) {
            return false;
        }
        gib += 1;
    }
    true
}

fn map_gib(gib: u64) -> bool {
    let Ok(slot) = usize::try_from(gib & 511) else { return false };
    // SAFETY: `slot` is below 512, within the live directory-pointer table.
    let entry = unsafe { (&raw mut pdpt).cast::<u64>().add(slot) };
    // SAFETY: in bounds as above; the table is only written here, on the only thread.
    if unsafe { entry.read_volatile() } != 0 {
        return true;
    }
    let Ok(layout) = Layout::from_size_align(4096, 4096) else { return false };
    // SAFETY: the layout is not of size zero. The page is never freed: it is a page table from here on.
    let table = unsafe { alloc_zeroed(layout) }.cast::<u64>();
    if table.is_null() {
        return false;
    }
    for page in 0..512_usize {
        // SAFETY: 512 entries fill the 4096 bytes just allocated.
        unsafe { table.add(page).write(gib * GIB + page as u64 * LARGE_PAGE + LARGE) }
    }
    // SAFETY: in bounds as above. The new table is complete, and memory is mapped one to one, so its address is the
    // physical one the CPU expects; the entry was empty, so no translation changes under anyone's feet.
    unsafe { entry.write_volatile(table.addr() as u64 + TABLE) }
    true
}
