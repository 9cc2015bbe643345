//! Pages that change in epoch after epoch. They stay writable: the guest pays no fault for writing them again, the log goes on
//! reporting them, and comparing with the [shadow](crate::shadow) tells whether they have changed.
//!
//! A fault costs several times what copying and comparing a page does, so a page is opened once it has changed in two epochs in
//! a row, and closed once it has not for `COLD_AFTER` epochs.

use crate::ids::{EpochId, PageIndex};
use crate::pages::PageSet;

/// Epochs without a change after which a page is protected again: about what a fault costs in copies.
const COLD_AFTER: u8 = 4;

/// Which pages of a guest are open.
#[derive(Debug)]
pub struct HotPages {
    open: PageSet,
    /// Number of the epoch in which a page last changed, its lowest byte: a page that is taken for hot by mistake once in 256
    /// times is closed soon.
    changed_in: Vec<u8>,
}

impl HotPages {
    /// No open page, of a guest of `pages` pages.
    ///
    /// # Panics
    /// When the guest has more pages than the address space.
    #[must_use]
    pub fn none(pages: u64) -> Self {
        let count = usize::try_from(pages).expect("a guest's page count fits the address space");
        Self { open: PageSet::empty(pages), changed_in: vec![0; count] }
    }

    /// The pages to be left open at the next harvest.
    #[must_use]
    pub fn open(&self) -> &PageSet {
        &self.open
    }

    /// A page was reported as written in `epoch`, and its content has changed since the epoch before or not.
    pub fn seen(&mut self, page: PageIndex, epoch: EpochId, changed: bool) {
        let this = epoch.0.to_le_bytes()[0];
        let Some(last) = usize::try_from(page.0).ok().and_then(|page| self.changed_in.get_mut(page)) else {
            return;
        };
        let since = this.wrapping_sub(*last);
        if changed {
            if since == 1 {
                self.open.insert(page);
            }
            *last = this;
        } else if since >= COLD_AFTER {
            self.open.remove(page);
        }
    }

    /// The shadow does not have this page any more: its changes cannot be found by comparing.
    pub fn close(&mut self, page: PageIndex) {
        self.open.remove(page);
    }

    /// Closes all.
    pub fn close_all(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageIndex = PageIndex(3);

    fn after(history: &[(u64, bool)]) -> bool {
        let mut hot = HotPages::none(10);
        history.iter().for_each(|(epoch, changed)| hot.seen(PAGE, EpochId(*epoch), *changed));
        hot.open().contains(PAGE)
    }

    #[test]
    fn a_page_is_open_once_it_has_changed_in_two_epochs_in_a_row() {
        assert!(!after(&[(300, true)]));
        assert!(!after(&[(300, true), (302, true)]));
        assert!(after(&[(300, true), (301, true)]));
        assert!(after(&[(255, true), (256, true)]));
    }

    #[test]
    fn a_page_that_stays_the_same_is_closed() {
        let hot = [(300, true), (301, true)];
        assert!(after(&[&hot[..], &[(302, false), (303, false), (304, true), (305, false)]].concat()));
        assert!(!after(&[&hot[..], &[(302, false), (303, false), (304, false), (305, false)]].concat()));
    }
}
