//! The simulated guest: a deterministic machine whose state spreads over pages, so that anything torn, lost or repeated
//! shows in what it says.
//!
//! Page 0 repeats the registers. Each client has a page with its last request and the answer to it, so that a repeated
//! request is answered again and not executed again, as TCP would do. The other pages hold data: every request writes
//! three and its answer carries a hash of three. Most writes go to a few hot pages; what is wrong with a cold page stays
//! wrong until somebody reads it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mycelium_ram_core::disk::{Change, DiskChange, SECTOR_BYTES};
use mycelium_ram_core::page_codec::PAGE_BYTES;
use mycelium_ram_core::{PageIndex, PageSet};
use xxhash_rust::xxh3::xxh3_64;

use crate::limits::{CLIENTS, DISK_BLOCKS, GUEST_PAGES};
use crate::rng::mix;

/// One page.
pub type Page = [u8; PAGE_BYTES];
/// All pages of a guest, and after them the blocks of its disk.
pub type Image = Vec<Page>;

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// Which client.
    pub client: u8,
    /// Counts its requests from 1.
    pub seq: u64,
    /// What to write.
    pub word: u64,
}

/// One step of the guest's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A request was executed.
    Request(Request),
    /// Background work was done.
    Tick,
}

/// What the guest answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    /// To which client.
    pub client: u8,
    /// To which of its requests.
    pub seq: u64,
    /// Length of the history with this request.
    pub step: u64,
    /// Hash of the history with this request.
    pub history: u64,
    /// Hash of three pages read while executing it.
    pub reads: u64,
}

impl Request {
    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(17);
        out.put_u8(self.client);
        out.put_u64_le(self.seq);
        out.put_u64_le(self.word);
        out.freeze()
    }

    /// From a frame that [`Request::encode`] made.
    #[must_use]
    pub fn decode(mut frame: &[u8]) -> Self {
        Self { client: frame.get_u8(), seq: frame.get_u64_le(), word: frame.get_u64_le() }
    }
}

impl Answer {
    /// As a frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(33);
        out.put_u8(self.client);
        for word in [self.seq, self.step, self.history, self.reads] {
            out.put_u64_le(word);
        }
        out.freeze()
    }

    /// From a frame that [`Answer::encode`] made.
    #[must_use]
    pub fn decode(mut frame: &[u8]) -> Self {
        Self {
            client: frame.get_u8(),
            seq: frame.get_u64_le(),
            step: frame.get_u64_le(),
            history: frame.get_u64_le(),
            reads: frame.get_u64_le(),
        }
    }
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Guest {
    pages: Image,
    dirty: PageSet,
    /// What it did to its disk since the last call of `take_changes`, if somebody wants to know.
    changes: Vec<DiskChange>,
    noting: bool,
    step: u64,
    history: u64,
}

/// Hash of the empty history.
pub const GENESIS: u64 = 0x6d79_6365_6c69_756d;

/// The hash of a history with one more entry.
#[must_use]
pub fn extend(history: u64, entry: &Entry) -> u64 {
    match entry {
        Entry::Tick => mix(history ^ 1),
        Entry::Request(r) => mix(mix(mix(history ^ 2) ^ r.seq ^ u64::from(r.client) << 56) ^ r.word),
    }
}

const FIRST_DATA_PAGE: u64 = 1 + CLIENTS as u64;
const HOT_PAGES: u64 = 5;
/// One write in so many goes to any page.
const COLD_WRITE: u64 = 48;

impl Guest {
    /// A freshly booted guest: some pages hold data, the others zero.
    #[must_use]
    pub fn boot() -> Self {
        let pages = blank(0);
        let dirty = PageSet::empty(GUEST_PAGES);
        let mut guest = Self { pages, dirty, changes: Vec::new(), noting: false, step: 0, history: GENESIS };
        for block in guest.pages[index(GUEST_PAGES)..].iter_mut().step_by(2) {
            block.fill(0x5a);
        }
        for page in (FIRST_DATA_PAGE..GUEST_PAGES).step_by(2) {
            (0..64).for_each(|slot| guest.write(page, slot * 8, mix(page << 8 | slot as u64)));
        }
        guest.write_registers();
        guest
    }

    /// A guest resumed from an image and its saved registers.
    ///
    /// # Errors
    /// What the guest would die of: registers that do not fit its memory.
    pub fn resume(pages: Image, state: &[u8]) -> Result<Self, String> {
        if pages.len() != index(GUEST_PAGES + DISK_BLOCKS) || state.len() != 16 {
            return Err(format!("{} pages and {} bytes of state", pages.len(), state.len()));
        }
        let (step, history) = (word(state, 0), word(state, 8));
        let (step_ram, history_ram) = (word(&pages[0], 0), word(&pages[0], 8));
        if (step, history) != (step_ram, history_ram) {
            return Err(format!("registers are at step {step}, memory is at step {step_ram}"));
        }
        Ok(Self {
            pages,
            dirty: PageSet::empty(GUEST_PAGES),
            changes: Vec::new(),
            noting: false,
            step,
            history,
        })
    }

    /// The registers, as saved at a cut.
    #[must_use]
    pub fn state(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        out.put_u64_le(self.step);
        out.put_u64_le(self.history);
        out.freeze()
    }

    /// Its memory.
    #[must_use]
    pub fn pages(&self) -> &Image {
        &self.pages
    }

    /// Hash of its history.
    #[must_use]
    pub fn history(&self) -> u64 {
        self.history
    }

    /// Length of its history.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Takes the set of pages written since the last call.
    pub fn take_dirty(&mut self) -> PageSet {
        self.dirty.take()
    }

    /// Takes what it did to its disk since the last call.
    pub fn take_changes(&mut self) -> Vec<DiskChange> {
        std::mem::take(&mut self.changes)
    }

    /// Whether what it does to its disk is noted from now on; what has been is forgotten if it is not.
    pub fn note_changes(&mut self, noting: bool) {
        self.noting = noting;
        if !noting {
            self.changes.clear();
        }
    }

    /// Puts pages back into the set of written ones, after a harvest that came to nothing.
    pub fn put_back(&mut self, pages: &PageSet) {
        self.dirty.union(pages);
    }

    /// Takes a request off the network: executed when it is a later one of the client's, answered again when it is the last one,
    /// otherwise ignored. Requests are left out only by a client that was answered in `async` what was lost since. The flag says
    /// whether it was executed.
    pub fn receive(&mut self, request: Request) -> Option<(Answer, bool)> {
        let page = &self.pages[1 + usize::from(request.client)];
        let last = word(page, 0);
        if request.seq == last && last > 0 {
            Some((Answer::decode(&page[8..41]), false))
        } else if request.seq > last {
            self.apply(&Entry::Request(request)).map(|answer| (answer, true))
        } else {
            None
        }
    }

    /// Executes one entry of a history.
    pub fn apply(&mut self, entry: &Entry) -> Option<Answer> {
        self.step += 1;
        self.history = extend(self.history, entry);
        let answer = match entry {
            Entry::Tick => {
                self.work();
                None
            }
            Entry::Request(request) => Some(self.execute(request)),
        };
        self.write_registers();
        answer
    }

    fn work(&mut self) {
        for n in 0..2 {
            let at = mix(self.history ^ n);
            self.write(written_page(at), offset(at), at);
        }
        self.write_disk(mix(self.history ^ 3));
        if self.step.is_multiple_of(16) {
            let page = written_page(self.history);
            self.pages[index(page)].fill(0);
            self.dirty.insert(PageIndex(page));
        }
    }

    fn execute(&mut self, request: &Request) -> Answer {
        let history = self.history;
        let spot = |n: u64| mix(history ^ n << 8);
        let (writes, reads) = ([spot(1), spot(2), spot(3)], [spot(4), spot(5), spot(6)]);
        writes.iter().for_each(|at| self.write(written_page(*at), offset(*at), *at));
        let reads = reads.iter().fold(0, |hash, at| mix(hash ^ xxh3_64(&self.pages[index(data_page(*at))])));
        self.write_disk(spot(7));
        let reads = mix(reads ^ xxh3_64(&self.pages[index(GUEST_PAGES + spot(8) % DISK_BLOCKS)]));
        let Request { client, seq, .. } = *request;
        let answer = Answer { client, seq, step: self.step, history: self.history, reads };
        let slot = 1 + u64::from(client);
        self.write(slot, 0, seq);
        self.pages[index(slot)][8..41].copy_from_slice(&answer.encode());
        answer
    }

    fn write_registers(&mut self) {
        self.write(0, 0, self.step);
        self.write(0, 8, self.history);
    }

    /// Writes a sector of its disk, or empties one.
    fn write_disk(&mut self, hash: u64) {
        let (block, sector) = ((hash >> 8) % DISK_BLOCKS, (hash >> 16) % (PAGE_BYTES as u64 / SECTOR_BYTES));
        let offset = block * PAGE_BYTES as u64 + sector * SECTOR_BYTES;
        let content = if hash.is_multiple_of(8) { [0; 8] } else { hash.to_le_bytes() };
        let data = Bytes::from(content.repeat(index(SECTOR_BYTES) / 8));
        let change = if hash.is_multiple_of(8) {
            Change::Zero { offset, bytes: SECTOR_BYTES }
        } else {
            Change::Write { offset, data }
        };
        let change = DiskChange { disk: 0, change };
        change_disk(&mut self.pages, &change);
        if self.noting {
            self.changes.push(change);
        }
    }

    fn write(&mut self, page: u64, at: usize, value: u64) {
        self.pages[index(page)][at..at + 8].copy_from_slice(&value.to_le_bytes());
        self.dirty.insert(PageIndex(page));
    }
}

/// Memory that holds nothing, and a disk that holds this.
#[must_use]
pub fn blank(on_disk: u8) -> Image {
    let mut image = vec![[0; PAGE_BYTES]; index(GUEST_PAGES + DISK_BLOCKS)];
    image[index(GUEST_PAGES)..].as_flattened_mut().fill(on_disk);
    image
}

/// Makes a change to the disk in an image.
pub fn change_disk(image: &mut Image, change: &DiskChange) {
    let range = change.change.range();
    let disk = image[index(GUEST_PAGES)..].as_flattened_mut();
    let range = index(range.start)..index(range.end);
    match &change.change {
        Change::Write { data, .. } | Change::Copy { data, .. } => disk[range].copy_from_slice(data),
        Change::Zero { .. } | Change::Flush => disk[range].fill(0),
    }
}

/// What a block of the disk in an image holds, as it is copied.
#[must_use]
pub fn copy_of(image: &Image, block: PageIndex) -> DiskChange {
    let data = Bytes::copy_from_slice(&image[index(GUEST_PAGES + block.0)]);
    DiskChange { disk: 0, change: Change::Copy { offset: block.0 * PAGE_BYTES as u64, data } }
}

fn data_page(hash: u64) -> u64 {
    FIRST_DATA_PAGE + (hash >> 8) % (GUEST_PAGES - FIRST_DATA_PAGE)
}

fn written_page(hash: u64) -> u64 {
    let any = data_page(hash);
    if (hash >> 20).is_multiple_of(COLD_WRITE) { any } else { FIRST_DATA_PAGE + any % HOT_PAGES }
}

fn offset(hash: u64) -> usize {
    index((hash >> 32) % (PAGE_BYTES as u64 / 8)) * 8
}

fn word(bytes: &[u8], at: usize) -> u64 {
    (&bytes[at..]).get_u64_le()
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("a page number fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(seq: u64) -> Request {
        Request { client: 1, seq, word: 77 + seq }
    }

    #[test]
    fn a_repeated_request_is_answered_again_and_not_executed_again() {
        let mut guest = Guest::boot();
        let (first, executed) = guest.receive(request(1)).unwrap();
        assert!(executed);
        assert_eq!(guest.receive(request(1)), Some((first, false)));
        assert_eq!(
            guest.receive(request(3)).map(|(_, executed)| executed),
            Some(true),
            "a client that was answered what is lost"
        );
        assert_eq!(guest.receive(request(2)), None);
        assert_eq!(guest.step(), 2);
    }

    #[test]
    fn the_same_history_gives_the_same_image() {
        let entries: Vec<_> =
            (1..60).map(|n| if n % 3 == 0 { Entry::Tick } else { Entry::Request(request(n)) }).collect();
        let (mut a, mut b) = (Guest::boot(), Guest::boot());
        for entry in &entries {
            assert_eq!(a.apply(entry), b.apply(entry));
            b = Guest::resume(b.pages().clone(), &b.state()).unwrap();
        }
        assert_eq!(a.pages(), b.pages());
    }

    #[test]
    fn registers_that_do_not_fit_the_memory_are_noticed() {
        let mut guest = Guest::boot();
        let old = guest.pages().clone();
        guest.apply(&Entry::Tick);
        assert!(Guest::resume(old, &guest.state()).is_err());
    }
}
