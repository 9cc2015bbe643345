//! Which pages the VMM itself wrote.
//!
//! KVM logs what vCPUs write; it cannot see a device thread filling a receive buffer through its own mapping.
//! `vm-memory` calls this bitmap at every write through guest memory, so no device can forget to.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use super::PAGE_BYTES;

/// One bit per page of one memory region, set by any thread, drained by the pausing one.
#[derive(Debug, Default)]
pub struct DirtyMap {
    words: Box<[AtomicU64]>,
}

impl DirtyMap {
    /// Calls `each(word_index, bits)` for every word that has bits, and clears it. Bit `b` of word `w` is page
    /// `64 * w + b` of the region.
    pub fn drain(&self, mut each: impl FnMut(usize, u64)) {
        for (index, word) in self.words.iter().enumerate() {
            // A plain load first: nearly all words are zero, and a swap would pull each cache line exclusive.
            if word.load(Ordering::Relaxed) != 0 {
                each(index, word.swap(0, Ordering::AcqRel));
            }
        }
    }

    fn set(&self, page: usize) {
        let bit = 1 << (page % 64);
        if let Some(word) = self.words.get(page / 64)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyMap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyMap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let last = offset.saturating_add(len - 1) / PAGE_BYTES;
        for page in offset / PAGE_BYTES..=last.min(self.words.len() * 64) {
            self.set(page);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_BYTES;
        self.words.get(page / 64).is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % 64)) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyMap {
    fn with_len(len: usize) -> Self {
        let words = len.div_ceil(PAGE_BYTES).div_ceil(64);
        DirtyMap { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages_of(map: &DirtyMap) -> Vec<usize> {
        let mut pages = Vec::new();
        map.drain(|word, bits| pages.extend((0..64).filter(|b| bits >> b & 1 == 1).map(|b| word * 64 + b)));
        pages
    }

    #[test]
    fn a_write_across_a_page_border_marks_both_pages() {
        let map = DirtyMap::with_len(200 * PAGE_BYTES);
        map.mark_dirty(64 * PAGE_BYTES - 1, 2);
        map.mark_dirty(0, 0);
        assert_eq!(pages_of(&map), [63, 64]);
        assert!(pages_of(&map).is_empty(), "draining clears");
    }

    #[test]
    fn marks_past_the_end_are_ignored() {
        let map = DirtyMap::with_len(PAGE_BYTES);
        map.mark_dirty(usize::MAX - 1, 8);
        map.slice_at(4 * PAGE_BYTES).mark_dirty(0, usize::MAX);
        map.drain(|word, _| assert_eq!(word, 0));
    }
}
