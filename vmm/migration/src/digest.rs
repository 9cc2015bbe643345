//! A digest of all memory that is kept while pages come and go in any order.
//!
//! It is the sum of a hash per page, salted with the page's number; a page of zeros adds nothing. Replacing a page takes its
//! old hash off and adds the new one, so both sides have the digest of everything at hand when the guest stands still.

use mycelium_ram_core::PageIndex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::batch::Page;

/// The digest of a guest's memory, page by page.
#[derive(Debug)]
pub struct PageDigest {
    /// 8 bytes per page: 0.2 % of the guest.
    hashes: Vec<u64>,
    sum: u64,
}

impl PageDigest {
    /// Of a guest of `pages` pages, all zero.
    #[must_use]
    pub fn zeros(pages: u64) -> Self {
        Self { hashes: vec![0; usize::try_from(pages).expect("a guest fits the address space")], sum: 0 }
    }

    /// The page now holds this; `None` is zeros. Pages the guest does not have are ignored.
    pub fn set(&mut self, page: PageIndex, content: Option<&Page>) {
        let index = usize::try_from(page.0).unwrap_or(usize::MAX);
        let Some(hash) = self.hashes.get_mut(index) else { return };
        let new = content.map_or(0, |content| xxh3_64_with_seed(content, page.0));
        self.sum = self.sum.wrapping_sub(*hash).wrapping_add(new);
        *hash = new;
    }

    /// Of all memory.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Page;

    fn content(fill: u8) -> Option<Page> {
        (fill != 0).then_some([fill; 4096])
    }

    proptest! {
        #[test]
        fn only_the_last_contents_count(writes in proptest::collection::vec((0u64..8, 0u8..4), 0..40)) {
            let (mut running, mut last) = (PageDigest::zeros(8), [0; 8]);
            for (page, fill) in &writes {
                running.set(PageIndex(*page), content(*fill).as_ref());
                last[usize::try_from(*page).unwrap()] = *fill;
            }
            let mut fresh = PageDigest::zeros(8);
            (0..).zip(last).for_each(|(page, fill)| fresh.set(PageIndex(page), content(fill).as_ref()));
            prop_assert_eq!(running.sum(), fresh.sum());
        }
    }

    #[test]
    fn pages_that_change_places_change_the_digest() {
        let digest = |pages: [u8; 2]| {
            let mut digest = PageDigest::zeros(2);
            (0..).zip(pages).for_each(|(page, fill)| digest.set(PageIndex(page), content(fill).as_ref()));
            digest.sum()
        };
        assert_ne!(digest([1, 2]), digest([2, 1]));
        assert_ne!(digest([1, 0]), digest([0, 1]));
        assert_eq!(digest([0, 0]), 0);
    }
}
