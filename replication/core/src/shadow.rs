//! What replicas have been sent of the pages that change most, so that the next change of such a page is sent as its
//! difference. Bounded: when it is full, the page not sent for longest makes room (second chance).
//!
//! One shadow serves all replicas of a VM. Whether a replica holds the shadow's content of a page is in its
//! [`PageLedger`](crate::PageLedger).

use std::fmt;

use crate::ids::PageIndex;
use crate::page_codec::Page;

/// No slot.
const NONE: u32 = u32::MAX;

/// One page in so many may be displaced in an epoch: a guest that writes through all its memory must not push out the pages
/// that change all the time.
const NEWCOMERS_SHARE: usize = 4;

/// Contents of some of a guest's pages.
pub struct Shadow {
    /// Slot of each guest page.
    slot_of: Vec<u32>,
    slots: Vec<Slot>,
    contents: Vec<Page>,
    capacity: usize,
    /// Where the search for a slot to free goes on.
    hand: usize,
    /// Pages that came in this epoch.
    newcomers: usize,
}

/// What became of a page that was put into the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It was there already.
    Again {
        /// With another content.
        changed: bool,
    },
    /// It is there now.
    New {
        /// In the place of this one.
        displaced: Option<PageIndex>,
    },
    /// It is not there: too many have come in this epoch, or the shadow keeps nothing.
    NoRoom,
}

impl Put {
    /// Whether the shadow has the content.
    #[must_use]
    pub fn is_kept(self) -> bool {
        self != Self::NoRoom
    }
}

#[derive(Clone, Copy)]
struct Slot {
    page: PageIndex,
    /// Sent again since the hand last came by.
    used: bool,
}

impl Shadow {
    /// An empty shadow of a guest of `pages` pages, which may keep `capacity` of them.
    ///
    /// # Panics
    /// When the guest has more pages than the address space.
    #[must_use]
    pub fn new(pages: u64, capacity: usize) -> Self {
        let pages = usize::try_from(pages).expect("a guest's page count fits the address space");
        let capacity = capacity.min(pages).min(NONE as usize);
        Self {
            slot_of: vec![NONE; pages],
            slots: Vec::new(),
            contents: Vec::new(),
            capacity,
            hand: 0,
            newcomers: 0,
        }
    }

    /// The content last kept of a page.
    #[must_use]
    pub fn get(&self, page: PageIndex) -> Option<&Page> {
        self.contents.get(self.slot(page)?)
    }

    /// A new epoch begins: newcomers may push out some pages again.
    pub fn begin_epoch(&mut self) {
        self.newcomers = 0;
    }

    /// Keeps the content of a page, if there is room for it in this epoch. `differs` says whether it is another than the one
    /// kept, where that is known.
    pub fn put(&mut self, page: PageIndex, content: &Page, differs: Option<bool>) -> Put {
        if let Some(slot) = self.slot(page) {
            self.slots[slot].used = true;
            let changed = differs.unwrap_or_else(|| self.contents[slot] != *content);
            if changed {
                self.contents[slot] = *content;
            }
            return Put::Again { changed };
        }
        if self.newcomers >= self.capacity.div_ceil(NEWCOMERS_SHARE) {
            return Put::NoRoom;
        }
        self.newcomers += 1;
        let (slot, displaced) = self.free_slot(page);
        self.slots[slot] = Slot { page, used: false };
        self.contents[slot] = *content;
        self.slot_of[index(page)] = u32::try_from(slot).expect("the capacity is bounded");
        Put::New { displaced }
    }

    /// Bytes of page contents kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&self.contents[..])
    }

    fn slot(&self, page: PageIndex) -> Option<usize> {
        let slot = *self.slot_of.get(index(page))?;
        (slot != NONE).then_some(slot as usize)
    }

    fn free_slot(&mut self, page: PageIndex) -> (usize, Option<PageIndex>) {
        if self.slots.len() < self.capacity {
            self.slots.push(Slot { page, used: false });
            self.contents.push([0; _]);
            return (self.slots.len() - 1, None);
        }
        loop {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.capacity;
            if !std::mem::take(&mut self.slots[slot].used) {
                let displaced = self.slots[slot].page;
                self.slot_of[index(displaced)] = NONE;
                return (slot, Some(displaced));
            }
        }
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shadow({} of {} pages)", self.slots.len(), self.capacity)
    }
}

fn index(page: PageIndex) -> usize {
    usize::try_from(page.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page_codec::PAGE_BYTES;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_page_that_is_sent_again_outlives_one_that_is_not() {
        let mut shadow = Shadow::new(10, 2);
        shadow.put(PageIndex(1), &[1; PAGE_BYTES], None);
        shadow.begin_epoch();
        shadow.put(PageIndex(2), &[2; PAGE_BYTES], None);
        assert_eq!(shadow.put(PageIndex(1), &[3; PAGE_BYTES], None), Put::Again { changed: true });
        shadow.begin_epoch();
        assert_eq!(
            shadow.put(PageIndex(4), &[4; PAGE_BYTES], None),
            Put::New { displaced: Some(PageIndex(2)) }
        );
        assert_eq!(shadow.get(PageIndex(1)), Some(&[3; PAGE_BYTES]));
        assert_eq!(shadow.get(PageIndex(2)), None);
        assert_eq!(shadow.get(PageIndex(4)), Some(&[4; PAGE_BYTES]));
    }

    #[test]
    fn a_shadow_without_room_keeps_nothing() {
        let mut shadow = Shadow::new(4, 0);
        assert_eq!(shadow.put(PageIndex(1), &[1; PAGE_BYTES], None), Put::NoRoom);
        assert_eq!(shadow.get(PageIndex(1)), None);
    }

    #[test]
    fn a_flood_of_new_pages_displaces_a_quarter_in_an_epoch() {
        let mut shadow = Shadow::new(1000, 8);
        let put = |shadow: &mut Shadow, page| shadow.put(PageIndex(page), &[1; PAGE_BYTES], None);
        for page in 0..8 {
            shadow.begin_epoch();
            assert!(put(&mut shadow, page).is_kept());
        }
        shadow.begin_epoch();
        assert_eq!((100..200).filter(|page| put(&mut shadow, *page).is_kept()).count(), 2);
        assert_eq!((0..8).filter(|page| shadow.get(PageIndex(*page)).is_some()).count(), 6);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_was_put_last(capacity in 0usize..6, puts in proptest::collection::vec((0u64..12, any::<u8>()), 0..80)) {
            let (mut shadow, mut last) = (Shadow::new(12, capacity), HashMap::new());
            for (page, fill) in puts {
                shadow.begin_epoch();
                shadow.put(PageIndex(page), &[fill; PAGE_BYTES], None);
                last.insert(page, fill);
                prop_assert!(shadow.bytes() <= capacity * PAGE_BYTES);
                prop_assert_eq!(shadow.get(PageIndex(page)).is_some(), capacity > 0);
                for page in 0..12 {
                    if let Some(kept) = shadow.get(PageIndex(page)) {
                        prop_assert_eq!(kept[0], last[&page]);
                    }
                }
            }
        }
    }
}
