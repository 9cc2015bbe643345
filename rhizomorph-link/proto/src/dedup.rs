//! Recognising the second copy of a datagram that was sent on two paths.

use crate::limits::DEDUP_WINDOW;

const WORDS: usize = (DEDUP_WINDOW / 64) as usize;

/// A sliding window over 64-bit sequence numbers: each number passes once.
///
/// A number older than the window is taken for a copy: the unreliable service may drop, it must not repeat.
#[derive(Debug, Default)]
pub struct DedupWindow {
    /// One more than the highest number seen.
    end: u64,
    /// Ring of seen marks, bit `seq % DEDUP_WINDOW`.
    seen: Vec<u64>,
}

impl DedupWindow {
    /// True exactly the first time `seq` is offered while it is inside the window.
    ///
    /// A peer choosing its numbers freely can make us drop its own datagrams, nothing more: cost per call is
    /// bounded by the window.
    pub fn first(&mut self, seq: u64) -> bool {
        if self.seen.is_empty() {
            self.seen = vec![0; WORDS];
        }
        if seq >= self.end {
            self.advance(seq);
        } else if self.end - seq > DEDUP_WINDOW {
            return false;
        }
        let (word, bit) = slot(seq);
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }

    /// Moves the window so that `seq` is its newest number, forgetting those that fall out.
    fn advance(&mut self, seq: u64) {
        if seq - self.end >= DEDUP_WINDOW {
            self.seen.fill(0);
        } else {
            for entering in self.end..=seq {
                let (word, bit) = slot(entering);
                self.seen[word] &= !bit;
            }
        }
        self.end = seq.saturating_add(1);
    }
}

fn slot(seq: u64) -> (usize, u64) {
    let position = seq % DEDUP_WINDOW;
    ((position / 64) as usize, 1 << (position % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_number_passes_once() {
        let mut window = DedupWindow::default();
        assert!(window.first(0));
        assert!(!window.first(0));
        assert!(window.first(5));
        assert!(window.first(3));
        assert!(!window.first(5));
        assert!(!window.first(3));
    }

    #[test]
    fn numbers_behind_the_window_are_refused() {
        let mut window = DedupWindow::default();
        assert!(window.first(DEDUP_WINDOW + 10));
        assert!(!window.first(10));
        assert!(window.first(11));
    }

    #[test]
    fn the_last_number_of_all_passes_at_most_once_per_offer() {
        let mut window = DedupWindow::default();
        assert!(window.first(u64::MAX - 1));
        assert!(!window.first(u64::MAX - 1));
        window.first(u64::MAX);
    }

    proptest! {
        #[test]
        fn like_a_set_while_inside_the_window(seqs in prop::collection::vec(0..DEDUP_WINDOW, 1..500), base in 0..1u64 << 40) {
            let mut window = DedupWindow::default();
            let mut model = HashSet::new();
            for seq in seqs {
                prop_assert_eq!(window.first(base + seq), model.insert(seq));
            }
        }

        #[test]
        fn never_repeats_whatever_the_numbers(seqs in prop::collection::vec(0u64..20_000, 1..2000)) {
            let mut window = DedupWindow::default();
            let mut passed = HashSet::new();
            for seq in seqs {
                if window.first(seq) {
                    prop_assert!(passed.insert(seq));
                }
            }
        }
    }
}
