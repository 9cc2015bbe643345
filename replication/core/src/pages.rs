//! A set of guest pages as a bitmap, and the ledger of which pages a replica is still owed.

use std::collections::BTreeMap;

use crate::ids::{EpochId, PageIndex};
use crate::sabotage::{Sabotage, sabotaged};

/// Pages of one guest, one bit each; shaped like KVM's dirty bitmap (bit `i % 64` of word `i / 64`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// The empty set over a guest of `pages` pages.
    #[must_use]
    pub fn empty(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("a guest's page count fits the address space");
        Self { words: vec![0; words], pages }
    }

    /// Every page of a guest of `pages` pages.
    #[must_use]
    pub fn full(pages: u64) -> Self {
        let mut set = Self::empty(pages);
        set.words.fill(u64::MAX);
        set.trim();
        set
    }

    /// Pages the guest has, in the set or not.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.pages
    }

    /// Pages in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether no page is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// Adds a page.
    ///
    /// # Panics
    /// When the page is not one of the guest's: the caller computed a wrong index.
    pub fn insert(&mut self, page: PageIndex) {
        assert!(page.0 < self.pages, "page {page} of a guest with {} pages", self.pages);
        let (word, bit) = split(page);
        self.words[word] |= 1 << bit;
    }

    /// Removes a page; pages beyond the guest are never in the set.
    pub fn remove(&mut self, page: PageIndex) {
        let (word, bit) = split(page);
        if let Some(w) = self.words.get_mut(word) {
            *w &= !(1 << bit);
        }
    }

    /// Whether the page is in the set.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        let (word, bit) = split(page);
        self.words.get(word).is_some_and(|w| w & (1 << bit) != 0)
    }

    /// Adds all pages of `other`, a set over the same guest.
    ///
    /// # Panics
    /// When the two are sets over guests of different size.
    pub fn union(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "page sets of different guests");
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
    }

    /// Removes all pages of `other`, a set over the same guest.
    ///
    /// # Panics
    /// When the two are sets over guests of different size.
    pub fn subtract(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "page sets of different guests");
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine &= !theirs;
        }
    }

    /// Adds pages from a bitmap whose bit 0 is page `first` (as KVM hands out one per memory slot). Bits past the
    /// guest's last page are ignored.
    pub fn union_words(&mut self, first: PageIndex, bitmap: &[u64]) {
        let (word, shift) = split(first);
        for (i, bits) in bitmap.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            if let Some(w) = self.words.get_mut(word + i) {
                *w |= bits << shift;
            }
            if let (true, Some(w)) = (shift > 0, self.words.get_mut(word + i + 1)) {
                *w |= bits >> (64 - shift);
            }
        }
        self.trim();
    }

    /// Whether each of 64 pages from `first` on is in the set: bit `i` is page `first + i`.
    #[must_use]
    pub fn bits_from(&self, first: PageIndex) -> u64 {
        let (word, shift) = split(first);
        let at = |word: usize| self.words.get(word).copied().unwrap_or(0);
        if shift == 0 { at(word) } else { at(word) >> shift | at(word.saturating_add(1)) << (64 - shift) }
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Moves the content out, leaving the set empty.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let words = self.words.len();
        Self { words: std::mem::replace(&mut self.words, vec![0; words]), pages: self.pages }
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(i, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| u64::from(rest.trailing_zeros()))?;
                rest &= rest - 1;
                Some(PageIndex(i as u64 * 64 + bit))
            })
        })
    }

    fn trim(&mut self) {
        if let (Some(last), tail @ 1..) = (self.words.last_mut(), self.pages % 64) {
            *last &= (1 << tail) - 1;
        }
    }
}

fn split(page: PageIndex) -> (usize, u32) {
    let word = usize::try_from(page.0 / 64).unwrap_or(usize::MAX);
    (word, u32::try_from(page.0 % 64).expect("a remainder of 64 fits"))
}

/// What one replica is owed: pages harvested but not sent, and pages sent but not acknowledged. A page leaves the ledger
/// only when an epoch that carried it is acknowledged, so a failed or aborted epoch loses nothing.
#[derive(Debug)]
pub struct PageLedger {
    owed: PageSet,
    in_flight: BTreeMap<EpochId, PageSet>,
    /// Pages of which the replica holds what the [shadow](crate::shadow::Shadow) holds, once it has what is in flight.
    shadowed: PageSet,
}

impl PageLedger {
    /// A ledger for a replica that has nothing yet: it is owed every page.
    #[must_use]
    pub fn owing_all(pages: u64) -> Self {
        Self { owed: PageSet::full(pages), in_flight: BTreeMap::new(), shadowed: PageSet::empty(pages) }
    }

    /// Adds harvested pages.
    pub fn owe(&mut self, dirty: &PageSet) {
        self.owed.union(dirty);
    }

    /// Pages owed and not in flight.
    #[must_use]
    pub fn owed(&self) -> &PageSet {
        &self.owed
    }

    /// Moves everything owed into `epoch`, which is about to be sent, and says what it is. A page of an early round of
    /// the same epoch stays in it.
    pub fn send_in(&mut self, epoch: EpochId) -> PageSet {
        let batch = self.owed.take();
        match self.in_flight.get_mut(&epoch) {
            Some(earlier) => earlier.union(&batch),
            None => drop(self.in_flight.insert(epoch, batch.clone())),
        }
        batch
    }

    /// Whether the next epoch may say of this page only what differs from the shadow's content, if the shadow has one.
    #[must_use]
    pub fn holds_shadow(&self, page: PageIndex) -> bool {
        self.shadowed.contains(page)
    }

    /// The shadow now has the content that this page had at the end of `epoch`.
    pub fn shadowed(&mut self, page: PageIndex, epoch: EpochId) {
        if self.in_flight.get(&epoch).is_some_and(|sent| sent.contains(page)) {
            self.shadowed.insert(page);
        } else {
            self.shadowed.remove(page);
        }
    }

    /// The replica has staged every epoch up to `through`: their pages are settled.
    pub fn acked(&mut self, through: EpochId) {
        self.in_flight = self.in_flight.split_off(&through.next());
    }

    /// Epochs after `kept` will never be staged as sent: their pages are owed again.
    pub fn abort_after(&mut self, kept: EpochId) {
        for (_, pages) in self.in_flight.split_off(&kept.next()) {
            if !sabotaged(Sabotage::DirtyPagesNotReturned) {
                self.owed.union(&pages);
            }
            if !sabotaged(Sabotage::StaleShadow) {
                self.shadowed.subtract(&pages);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(pages: u64, members: &BTreeSet<u64>) -> PageSet {
        let mut s = PageSet::empty(pages);
        members.iter().for_each(|p| s.insert(PageIndex(*p)));
        s
    }

    #[test]
    fn full_has_exactly_the_guests_pages() {
        for pages in [0, 1, 63, 64, 65, 1000] {
            assert_eq!(PageSet::full(pages).len(), pages);
            assert_eq!(PageSet::full(pages).iter().count() as u64, pages);
        }
    }

    #[test]
    fn aborted_epochs_return_their_pages() {
        let mut ledger = PageLedger::owing_all(10);
        assert_eq!(ledger.send_in(EpochId(1)).len(), 10);
        ledger.acked(EpochId(1));
        ledger.owe(&set(10, &[3].into()));
        ledger.send_in(EpochId(2));
        ledger.owe(&set(10, &[4].into()));
        ledger.send_in(EpochId(3));
        ledger.abort_after(EpochId(1));
        assert_eq!(*ledger.owed(), set(10, &[3, 4].into()));
    }

    #[test]
    fn a_replica_holds_the_shadow_of_a_page_only_from_an_epoch_it_keeps() {
        let mut ledger = PageLedger::owing_all(4);
        ledger.send_in(EpochId(1));
        ledger.shadowed(PageIndex(1), EpochId(1));
        ledger.shadowed(PageIndex(2), EpochId(1));
        ledger.owe(&set(4, &[1].into()));
        ledger.send_in(EpochId(2));
        ledger.shadowed(PageIndex(1), EpochId(2));
        ledger.shadowed(PageIndex(3), EpochId(2));
        assert!([1, 2].iter().all(|p| ledger.holds_shadow(PageIndex(*p))));
        assert!(!ledger.holds_shadow(PageIndex(3)), "epoch 2 did not carry page 3");
        ledger.abort_after(EpochId(1));
        assert!(!ledger.holds_shadow(PageIndex(1)), "the shadow has its content of epoch 2");
        assert!(ledger.holds_shadow(PageIndex(2)));
    }

    proptest! {
        #[test]
        fn behaves_like_a_btree_set(pages in 1u64..300, a: BTreeSet<u64>, b: BTreeSet<u64>) {
            let a: BTreeSet<u64> = a.iter().map(|p| p % pages).collect();
            let b: BTreeSet<u64> = b.iter().map(|p| p % pages).collect();
            let mut s = set(pages, &a);
            s.union(&set(pages, &b));
            let want: Vec<u64> = a.union(&b).copied().collect();
            prop_assert_eq!(s.iter().map(|p| p.0).collect::<Vec<_>>(), want.clone());
            prop_assert_eq!(s.len(), want.len() as u64);
            prop_assert!((0..pages).all(|p| s.contains(PageIndex(p)) == want.contains(&p)));
        }

        #[test]
        fn bits_are_read_at_any_offset(members: BTreeSet<u8>, first in 0u64..300) {
            let s = set(256, &members.iter().map(|p| u64::from(*p)).collect());
            let bits = s.bits_from(PageIndex(first));
            prop_assert!((0..64).all(|n| (bits >> n & 1 == 1) == s.contains(PageIndex(first + n))));
        }

        #[test]
        fn union_words_places_bits_at_any_offset(first in 0u64..130, words in proptest::collection::vec(any::<u64>(), 0..4)) {
            let pages = 300;
            let mut s = PageSet::empty(pages);
            s.union_words(PageIndex(first), &words);
            for p in 0..pages {
                let bit = p.checked_sub(first).and_then(|o| words.get((o / 64) as usize).map(|w| w >> (o % 64) & 1));
                prop_assert_eq!(s.contains(PageIndex(p)), bit == Some(1));
            }
        }
    }
}
