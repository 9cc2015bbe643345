//! The progress page: figures at a fixed guest-physical address, for whoever inspects the guest's memory from
//! outside. README.md, "Where progress is counted", is its contract.

use core::ptr;
use resp_kv::dirty::Dirtier;

/// Guest-physical address of the page; `link.ld` keeps the image below it.
const ADDRESS: usize = 0x1f_f000;

/// First word of the page: "MYCPROG1" read as a little-endian number.
const MAGIC: u64 = u64::from_le_bytes(*b"MYCPROG1");

/// Words of the page, by position.
#[repr(usize)]
#[derive(Clone, Copy)]
enum Word {
    Magic = 0,
    Ticks = 1,
    RegionAddress = 2,
    RegionPages = 3,
    Rounds = 4,
    PageWrites = 5,
    Running = 6,
}

fn put(word: Word, value: u64) {
    // SAFETY: the page is RAM below the heap and above the image, so nothing else lies there, and the enumeration
    // keeps the index within its 512 words.
    unsafe { ptr::with_exposed_provenance_mut::<u64>(ADDRESS).add(word as usize).write_volatile(value) }
}

/// Marks the page as valid.
pub(crate) fn init() {
    put(Word::Magic, MAGIC);
    put(Word::Ticks, 0);
}

/// Publishes the number of tick lines.
pub(crate) fn ticks(count: u64) {
    put(Word::Ticks, count);
}

/// Publishes a dirtier's region and progress. Call it when something changed: an idle guest dirties no page.
pub(crate) fn dirtier(dirtier: &Dirtier) {
    let stat = dirtier.stat();
    put(Word::RegionAddress, dirtier.region_address() as u64);
    put(Word::RegionPages, dirtier.spec().region_pages());
    put(Word::Rounds, stat.rounds);
    put(Word::PageWrites, stat.page_writes);
    put(Word::Running, u64::from(stat.running));
}
