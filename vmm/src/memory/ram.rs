//! The memfd behind guest RAM and the ways to reach one page of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use super::{DirtyMap, Gpa, HoleMap, PageIndex, backing};
use crate::arch::layout;
use crate::spec::HugePages;

/// Bytes of a guest page: the unit of dirty tracking and replication.
pub const PAGE_BYTES: usize = 4096;

/// The contents of one page.
pub type Page = [u8; PAGE_BYTES];

/// Why guest RAM could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused the memory itself.
    #[error("cannot {action} {bytes} bytes of guest RAM: {source}; check free memory and `ulimit -v`")]
    Map {
        /// What was being done.
        action: &'static str,
        /// Size asked for.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A page outside RAM was named.
    #[error("page {page} is outside guest RAM, which has {pages} pages; the sender has another RAM size")]
    NoSuchPage {
        /// The page named.
        page: u64,
        /// How many there are.
        pages: u64,
    },
}

/// Guest RAM. Shared by `Arc` between the machine and whoever copies pages.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap<DirtyMap>,
    memfd: File,
    pages: u64,
    holes: HoleMap,
    filling: AtomicBool,
}

impl GuestRam {
    /// Makes zeroed RAM of `bytes`, a multiple of [`PAGE_BYTES`].
    ///
    /// # Errors
    /// [`MemoryError::Map`] when memory cannot be had.
    pub fn new(bytes: u64) -> Result<GuestRam, MemoryError> {
        GuestRam::of(bytes, HugePages::None)
    }

    /// As [`new`](Self::new), of huge pages; with hugetlb, `bytes` is a multiple of theirs.
    ///
    /// # Errors
    /// [`MemoryError::Map`] when memory cannot be had.
    pub fn of(bytes: u64, huge: HugePages) -> Result<GuestRam, MemoryError> {
        let map_error = |action| move |source| MemoryError::Map { action, bytes, source };
        let memfd = backing::memfd(bytes, huge).map_err(map_error("allocate"))?;
        let mut regions = Vec::new();
        let mut offset = 0;
        for (gpa, len) in layout::ram_ranges(bytes) {
            let file = memfd.try_clone().map_err(map_error("share"))?;
            let size = usize::try_from(len).unwrap_or(usize::MAX);
            let region = MmapRegion::from_file(FileOffset::new(file, offset), size)
                .map_err(|e| map_error("map")(io::Error::other(e)))?;
            if huge == HugePages::Advise {
                backing::advise(region.as_ptr(), size);
            }
            regions.push(
                GuestRegionMmap::new(region, GuestAddress(gpa))
                    .ok_or_else(|| map_error("place")(io::Error::other("end of guest address space")))?,
            );
            offset += len;
        }
        let memory =
            GuestMemoryMmap::from_regions(regions).map_err(|e| map_error("place")(io::Error::other(e)))?;
        let pages = bytes / PAGE_BYTES as u64;
        Ok(GuestRam { memory, memfd, pages, holes: HoleMap::all(pages), filling: AtomicBool::new(false) })
    }

    /// Number of pages.
    pub fn page_count(&self) -> u64 {
        self.pages
    }

    /// The file behind RAM: page `i` is at offset `i * PAGE_BYTES`.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// Guest physical address of `page`, or `None` past the end of RAM.
    pub fn gpa_of(&self, page: PageIndex) -> Option<Gpa> {
        let low = layout::RAM_LOW_END / PAGE_BYTES as u64;
        let address = match page.0 {
            past if past >= self.pages => return None,
            index if index < low => index * PAGE_BYTES as u64,
            index => layout::RAM_HIGH_START + (index - low) * PAGE_BYTES as u64,
        };
        Some(Gpa(address))
    }

    /// The RAM page that holds `gpa`, or `None` if no RAM is there.
    pub fn page_of(&self, gpa: Gpa) -> Option<PageIndex> {
        let offset = match gpa.0 {
            low if low < layout::RAM_LOW_END => low,
            high if high >= layout::RAM_HIGH_START => high - layout::RAM_HIGH_START + layout::RAM_LOW_END,
            _ => return None,
        };
        let page = offset / PAGE_BYTES as u64;
        (page < self.pages).then_some(PageIndex(page))
    }

    /// Says whether RAM is being filled as it is touched (userfaultfd). Until that is over a hole is no zero page but one
    /// that has not arrived: pages are read through the mapping, and none may be given back.
    pub fn set_filling(&self, filling: bool) {
        self.filling.store(filling, Ordering::Release);
    }

    /// Whether a hole is a page that has not arrived.
    pub fn is_filling(&self) -> bool {
        self.filling.load(Ordering::Acquire)
    }

    /// Copies one page out. With the VM running, each byte is one the page held at some moment of the call.
    ///
    /// A page the host has no memory for stays without: it is read as zero through the file, because looking at it
    /// through the mapping would have the kernel allocate it.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPage`].
    pub fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MemoryError> {
        let from = self.page_ptr(page)?;
        let file_tells = self.holes.may_be(page) && !self.is_filling();
        if file_tells && self.memfd.read_exact_at(into, page.0 * PAGE_BYTES as u64).is_ok() {
            if !mycelium_ram_core::page_codec::is_zero(into) {
                self.holes.filled(page);
            }
            return Ok(());
        }
        // SAFETY: `page_ptr` returns the start of PAGE_BYTES mapped bytes that stay mapped as long as `self`;
        // `into` is ours and of the same size, and cannot overlap a mapping nobody else hands out as a slice.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), PAGE_BYTES) };
        Ok(())
    }

    /// Overwrites one page. Dirty tracking does not see it: this is how a replica's image is written, and what
    /// came from the peer need not go back.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPage`].
    pub fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MemoryError> {
        let into = self.page_ptr(page)?;
        // SAFETY: as in `read_page`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, PAGE_BYTES) };
        Ok(())
    }

    /// Overwrites part of a page, from byte `at` of it. Dirty tracking does not see it, as in [`GuestRam::write_page`].
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPage`].
    ///
    /// # Panics
    /// When the part ends beyond the page: the caller computed a wrong offset.
    pub fn write_part(&self, page: PageIndex, at: usize, from: &[u8]) -> Result<(), MemoryError> {
        assert!(at.saturating_add(from.len()) <= PAGE_BYTES, "{} bytes at {at} of a page", from.len());
        let into = self.page_ptr(page)?;
        // SAFETY: as in `write_page`, of whose bytes these are some: the assertion above keeps them inside the page.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.add(at), from.len()) };
        Ok(())
    }

    /// Address of the first of [`PAGE_BYTES`] bytes of `page` in this process, for encoding without a copy.
    /// Valid as long as this `GuestRam`; reading through it races with the guest unless the machine is paused.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPage`].
    pub fn page_ptr(&self, page: PageIndex) -> Result<*mut u8, MemoryError> {
        let missing = MemoryError::NoSuchPage { page: page.0, pages: self.pages };
        let Some(Gpa(gpa)) = self.gpa_of(page) else { return Err(missing) };
        self.memory.get_host_address(GuestAddress(gpa)).map_err(|_| missing)
    }

    /// Sets all of RAM to zero and marks nothing: for a machine that is not being tracked.
    ///
    /// # Errors
    /// [`MemoryError::Map`] when the kernel refuses to punch the hole.
    pub(crate) fn zero(&self) -> Result<(), MemoryError> {
        self.punch(PageIndex(0), self.pages)
    }

    /// Gives the memory of `count` pages from `first` on back to the host. They read as zero from then on, and are
    /// marked as written: what reads as zero here must read as zero in a replica. Not while RAM is being filled.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPage`], or [`MemoryError::Map`] when the kernel refuses; the pages are then as before.
    pub(crate) fn give_back(&self, first: PageIndex, count: u64) -> Result<(), MemoryError> {
        let end = first.0.saturating_add(count);
        if end > self.pages {
            return Err(MemoryError::NoSuchPage { page: end - 1, pages: self.pages });
        }
        self.punch(first, count)?;
        // Marked after the fact, like every write: whoever harvests in between finds them in the next harvest.
        for slot in self.slots() {
            let from = first.0.max(slot.first_page);
            let to = end.min(slot.first_page + slot.bytes / PAGE_BYTES as u64);
            if from < to {
                slot.written.mark_dirty(bytes_of(from - slot.first_page), bytes_of(to - from));
            }
        }
        Ok(())
    }

    /// The mapping of RAM is shared, so that only a hole in the file frees memory (`madvise` would not).
    fn punch(&self, first: PageIndex, count: u64) -> Result<(), MemoryError> {
        let [offset, bytes] = [first.0, count].map(|pages| pages * PAGE_BYTES as u64);
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.memfd, mode, offset, bytes))
            .map_err(|e| MemoryError::Map { action: "give back", bytes, source: e.into() })?;
        self.holes.emptied(first, count);
        Ok(())
    }

    /// Guest memory as `vm-memory` sees it; writes through it are marked in the regions' [`DirtyMap`]s.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap<DirtyMap> {
        &self.memory
    }

    /// Where `bytes` bytes from guest address `gpa` on are in this process; `None` if they are not all RAM, or not in
    /// one piece.
    pub(crate) fn host_range(&self, gpa: u64, bytes: u32) -> Option<HostRange> {
        let bytes = usize::try_from(bytes).ok()?;
        let slice = self.memory.get_slice(GuestAddress(gpa), bytes).ok()?;
        Some(HostRange { host: slice.ptr_guard().as_ptr().expose_provenance(), bytes })
    }

    /// Marks guest memory as written by a device that wrote it past `vm-memory`.
    pub(crate) fn mark_written(&self, gpa: u64, bytes: u32) {
        if let Ok(slice) = self.memory.get_slice(GuestAddress(gpa), usize::try_from(bytes).unwrap_or(0)) {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }

    /// Copies `from` into RAM, unmarked.
    pub(crate) fn copy_in(&self, from: &[u8], into: HostRange) {
        assert!(self.holds(into) && from.len() == into.bytes, "ranges come from this RAM");
        // SAFETY: `holds` has checked that the range lies in a mapping that lives as long as `self`; `from` is no
        // guest memory, of which nobody hands out slices. The guest may write at the same time: it then has what
        // it deserves, and no Rust reference to those bytes exists.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), into.bytes) };
    }

    /// Copies RAM into `into`.
    pub(crate) fn copy_out(&self, from: HostRange, into: &mut [u8]) {
        assert!(self.holds(from) && into.len() == from.bytes, "ranges come from this RAM");
        // SAFETY: as in `copy_in`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), from.bytes) };
    }

    /// Copies `from`, one range after the other, into `into`, which is as long as all of them.
    pub(crate) fn gather(&self, from: &[HostRange], into: &mut [u8]) {
        let mut rest = into;
        for range in from {
            let (part, behind) = rest.split_at_mut(range.bytes);
            self.copy_out(*range, part);
            rest = behind;
        }
    }

    fn holds(&self, range: HostRange) -> bool {
        let inside = |slot: Slot<'_>| {
            let start = usize::try_from(slot.host).unwrap_or(usize::MAX);
            let offset = range.host.checked_sub(start);
            offset
                .and_then(|offset| offset.checked_add(range.bytes))
                .is_some_and(|end| end as u64 <= slot.bytes)
        };
        self.slots().any(inside)
    }

    /// The parts of RAM as (first page, guest address, host address, bytes), one KVM memory slot each.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        let mut first = 0;
        self.memory.iter().map(move |region| {
            let slot = Slot {
                first_page: first,
                gpa: region.start_addr().0,
                host: region.as_ptr() as u64,
                bytes: region.len(),
                written: (**region).bitmap(),
            };
            first += slot.bytes / PAGE_BYTES as u64;
            slot
        })
    }
}

/// A piece of guest RAM as this process sees it. Only [`GuestRam::host_range`] makes one, and it is good for as long
/// as that RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRange {
    host: usize,
    pub(crate) bytes: usize,
}

impl HostRange {
    fn as_ptr(self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.host)
    }

    /// For the kernel.
    pub(crate) fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.as_ptr().cast(), iov_len: self.bytes }
    }

    /// Whether address and length are multiples of `align`.
    pub(crate) fn is_aligned(&self, align: usize) -> bool {
        self.host.is_multiple_of(align) && self.bytes.is_multiple_of(align)
    }

    /// Its parts of at most `most` bytes.
    pub(crate) fn chunks(self, most: usize) -> impl Iterator<Item = HostRange> {
        (0..self.bytes.div_ceil(most))
            .map(move |n| HostRange { host: self.host + n * most, bytes: most.min(self.bytes - n * most) })
    }
}

/// One contiguous part of RAM.
pub(crate) struct Slot<'a> {
    pub(crate) first_page: u64,
    pub(crate) gpa: u64,
    pub(crate) host: u64,
    pub(crate) bytes: u64,
    pub(crate) written: &'a DirtyMap,
}

fn bytes_of(pages: u64) -> usize {
    usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn pages_and_addresses_map_onto_each_other_around_the_hole() {
        // Sparse memfd: 4 GiB of address space, no memory.
        let ram = GuestRam::new(4 << 30).unwrap();
        let low = layout::RAM_LOW_END / 4096;
        for (page, gpa) in
            [(0, 0), (1, 4096), (low - 1, layout::RAM_LOW_END - 4096), (low, layout::RAM_HIGH_START)]
        {
            assert_eq!(ram.gpa_of(PageIndex(page)), Some(Gpa(gpa)));
            assert_eq!(ram.page_of(Gpa(gpa + 17)), Some(PageIndex(page)));
        }
        assert_eq!(ram.page_of(Gpa(layout::RAM_LOW_END)), None);
        assert_eq!(ram.gpa_of(PageIndex(ram.page_count())), None);
        assert_eq!(ram.page_of(Gpa(u64::MAX)), None);
    }

    #[test]
    fn a_page_written_is_the_page_read_and_only_guest_writes_are_marked() {
        let ram = GuestRam::new(64 * 4096).unwrap();
        ram.write_page(PageIndex(7), &[9; PAGE_BYTES]).unwrap();
        ram.write_part(PageIndex(7), PAGE_BYTES - 2, &[1, 2]).unwrap();
        let mut page = [0; PAGE_BYTES];
        ram.read_page(PageIndex(7), &mut page).unwrap();
        assert_eq!(page[..PAGE_BYTES - 2], [9; PAGE_BYTES - 2]);
        assert_eq!(page[PAGE_BYTES - 2..], [1, 2]);
        ram.memory().write_obj(1u8, GuestAddress(3 * 4096)).unwrap();
        let mut words = Vec::new();
        ram.slots().for_each(|slot| slot.written.drain(|_, bits| words.push(bits)));
        assert_eq!(words, [1 << 3]);
        assert!(matches!(
            ram.read_page(PageIndex(64), &mut page),
            Err(MemoryError::NoSuchPage { page: 64, pages: 64 })
        ));
    }

    fn blocks(ram: &GuestRam) -> u64 {
        u64::try_from(rustix::fs::fstat(ram.memfd()).unwrap().st_blocks).unwrap()
    }

    #[test]
    fn pages_given_back_are_zero_marked_and_free_again() {
        let ram = GuestRam::new(64 * 4096).unwrap();
        (0..64).for_each(|page| ram.write_page(PageIndex(page), &[9; PAGE_BYTES]).unwrap());
        assert_eq!(blocks(&ram), 64 * 8);
        ram.give_back(PageIndex(10), 3).unwrap();
        assert_eq!(blocks(&ram), 61 * 8);
        let mut words = Vec::new();
        ram.slots().for_each(|slot| slot.written.drain(|_, bits| words.push(bits)));
        assert_eq!(words, [0b111 << 10]);
        let mut page = [7; PAGE_BYTES];
        ram.read_page(PageIndex(11), &mut page).unwrap();
        assert_eq!(
            (page, blocks(&ram)),
            ([0; PAGE_BYTES], 61 * 8),
            "reading for a replica allocates nothing"
        );
        ram.read_page(PageIndex(13), &mut page).unwrap();
        assert_eq!(page, [9; PAGE_BYTES]);
        assert!(matches!(ram.give_back(PageIndex(63), 2), Err(MemoryError::NoSuchPage { page: 64, .. })));
        assert!(ram.give_back(PageIndex(1), u64::MAX).is_err());
    }

    #[test]
    fn a_run_across_the_hole_for_devices_is_marked_on_both_sides() {
        let ram = GuestRam::new(4 << 30).unwrap();
        let low = layout::RAM_LOW_END / 4096;
        ram.give_back(PageIndex(low - 1), 2).unwrap();
        let mut marked = Vec::new();
        ram.slots()
            .for_each(|slot| slot.written.drain(|word, bits| marked.push((slot.first_page, word, bits))));
        assert_eq!(marked, [(0, 12_287, 1 << 63), (low, 0, 1)]);
    }
}
