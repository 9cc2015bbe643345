//! Which pages have been given to the guest.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit for each page of RAM, set once and by any thread.
#[derive(Debug)]
pub(super) struct Present {
    words: Vec<AtomicU64>,
    count: AtomicU64,
}

impl Present {
    pub(super) fn new(pages: u64) -> Present {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        Present { words: (0..words).map(|_| AtomicU64::new(0)).collect(), count: AtomicU64::new(0) }
    }

    fn place(&self, page: u64) -> (&AtomicU64, u64) {
        (&self.words[usize::try_from(page / 64).unwrap_or(usize::MAX)], 1 << (page % 64))
    }

    pub(super) fn has(&self, page: u64) -> bool {
        let (word, bit) = self.place(page);
        word.load(Ordering::Acquire) & bit != 0
    }

    pub(super) fn set(&self, pages: Range<u64>) {
        let mut page = pages.start;
        while page < pages.end {
            let in_word = (64 - page % 64).min(pages.end - page);
            let (word, first) = self.place(page);
            let bits = (u64::MAX >> (64 - in_word)) * first;
            let new = bits & !word.fetch_or(bits, Ordering::AcqRel);
            self.count.fetch_add(u64::from(new.count_ones()), Ordering::AcqRel);
            page += in_word;
        }
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// The ranges within `pages` that are not set.
    pub(super) fn absent(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut next = pages.start;
        std::iter::from_fn(move || {
            let start = (next..pages.end).find(|page| !self.has(*page))?;
            let end = (start..pages.end).find(|page| self.has(*page)).unwrap_or(pages.end);
            next = end;
            Some(start..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_count_once_and_gaps_are_found() {
        let present = Present::new(200);
        present.set(10..20);
        present.set(15..70);
        present.set(199..200);
        assert_eq!(present.count(), 61);
        assert_eq!(present.absent(0..200).collect::<Vec<_>>(), [0..10, 70..199]);
        assert_eq!(present.absent(12..40).count(), 0);
        assert_eq!(present.absent(64..80).next(), Some(70..80));
    }
}
