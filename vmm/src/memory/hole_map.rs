//! Which pages the host may have no memory for.
//!
//! A hint, never wrong in the direction that matters: a page whose bit is clear may be a hole (it then costs a page of
//! memory to look at it), a page whose bit is set need not be one (it then costs a system call). Content is right
//! either way.

use std::sync::atomic::{AtomicU64, Ordering};

use super::PageIndex;

/// One bit per page of RAM.
#[derive(Debug)]
pub(super) struct HoleMap {
    words: Box<[AtomicU64]>,
}

impl HoleMap {
    /// RAM nobody has touched yet.
    pub(super) fn all(pages: u64) -> HoleMap {
        HoleMap { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(u64::MAX)).collect() }
    }

    /// Whether the page may be a hole.
    pub(super) fn may_be(&self, page: PageIndex) -> bool {
        self.word(page).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// The page has been seen to hold something.
    pub(super) fn filled(&self, page: PageIndex) {
        if let Some((word, bit)) = self.word(page) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// The pages have been given back.
    pub(super) fn emptied(&self, first: PageIndex, count: u64) {
        let mut page = first.0;
        let end = first.0.saturating_add(count);
        while let Some((word, _)) = self.word(PageIndex(page)).filter(|_| page < end) {
            let pages = (end - page).min(64 - page % 64);
            word.fetch_or(u64::MAX >> (64 - pages) << (page % 64), Ordering::Relaxed);
            page += pages;
        }
    }

    fn word(&self, page: PageIndex) -> Option<(&AtomicU64, u64)> {
        let word = self.words.get(usize::try_from(page.0 / 64).ok()?)?;
        Some((word, 1 << (page.0 % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_set_to_the_page_and_past_the_end_nothing_happens() {
        let map = HoleMap::all(200);
        (0..256).for_each(|page| map.filled(PageIndex(page)));
        map.emptied(PageIndex(60), 72);
        map.emptied(PageIndex(199), u64::MAX);
        map.emptied(PageIndex(3), 0);
        let set: Vec<u64> = (0..300).filter(|page| map.may_be(PageIndex(*page))).collect();
        let expected: Vec<u64> = (60..132).chain(199..256).collect();
        assert_eq!(set, expected);
    }
}
