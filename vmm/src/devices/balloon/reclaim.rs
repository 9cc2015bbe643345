//! Which pages a request gives back: checked against RAM, then merged into as few runs as they make.

use crate::memory::{Gpa, GuestRam, PAGE_BYTES, PageIndex};
use crate::virtio::ChainError;

/// Neighbouring pages: the first, and how many.
pub(super) type Run = (u64, u64);

/// The pages of one request.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    runs: Vec<Run>,
}

impl Reclaim {
    /// Begins a request.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
    }

    /// Adds the page with the number the guest uses: its address divided by 4096.
    ///
    /// # Errors
    /// [`ChainError::OutsideRam`].
    pub(super) fn add_page(&mut self, ram: &GuestRam, number: u32) -> Result<(), ChainError> {
        let page = ram.page_of(Gpa(u64::from(number) * PAGE_BYTES as u64)).ok_or(ChainError::OutsideRam)?;
        match self.runs.last_mut() {
            Some((first, count)) if *first + *count == page.0 => *count += 1,
            _ => self.runs.push((page.0, 1)),
        }
        Ok(())
    }

    /// Adds a range of guest addresses.
    ///
    /// # Errors
    /// [`ChainError::Unaligned`] unless it is whole pages, [`ChainError::OutsideRam`] unless all of it is RAM.
    pub(super) fn add_range(&mut self, ram: &GuestRam, address: u64, bytes: u32) -> Result<(), ChainError> {
        let (page, bytes) = (PAGE_BYTES as u64, u64::from(bytes));
        if bytes == 0 || !address.is_multiple_of(page) || !bytes.is_multiple_of(page) {
            return Err(ChainError::Unaligned);
        }
        let last = address.checked_add(bytes - page).and_then(|last| ram.page_of(Gpa(last)));
        let (Some(PageIndex(first)), Some(PageIndex(last))) = (ram.page_of(Gpa(address)), last) else {
            return Err(ChainError::OutsideRam);
        };
        // Page numbers leave the hole for devices out: a range across it has more bytes than pages.
        if last - first + 1 != bytes / page {
            return Err(ChainError::OutsideRam);
        }
        self.runs.push((first, last - first + 1));
        Ok(())
    }

    /// Merges neighbours and what was named twice.
    pub(super) fn merge(&mut self) -> &[Run] {
        self.runs.sort_unstable();
        self.runs.dedup_by(|next, run| {
            let touches = next.0 <= run.0 + run.1;
            if touches {
                run.1 = run.1.max(next.0 + next.1 - run.0);
            }
            touches
        });
        &self.runs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::arch::layout;

    #[test]
    fn a_range_must_be_whole_pages_of_ram() {
        let ram = GuestRam::new(4 << 30).unwrap();
        let mut reclaim = Reclaim::default();
        let (low, high) = (layout::RAM_LOW_END, layout::RAM_HIGH_START);
        for (address, bytes, expected) in [
            (0, 0, ChainError::Unaligned),
            (1, 4096, ChainError::Unaligned),
            (0, 4097, ChainError::Unaligned),
            (low, 4096, ChainError::OutsideRam),
            (low - 4096, 8192, ChainError::OutsideRam),
            (low - 4096, 0x4000_2000, ChainError::OutsideRam),
            (high + (1 << 30), 4096, ChainError::OutsideRam),
            (u64::MAX - 4095, 4096, ChainError::OutsideRam),
            (u64::MAX - 4095, 8192, ChainError::OutsideRam),
        ] {
            assert_eq!(reclaim.add_range(&ram, address, bytes), Err(expected), "{address:#x} {bytes:#x}");
        }
        assert_eq!(reclaim.add_page(&ram, u32::MAX), Err(ChainError::OutsideRam));
        assert!(reclaim.merge().is_empty());
        reclaim.add_range(&ram, high, 8192).unwrap();
        reclaim.add_range(&ram, low - 4096, 4096).unwrap();
        assert_eq!(reclaim.merge(), [(low / 4096 - 1, 3)], "neighbours in the file are one run");
    }

    proptest! {
        #[test]
        fn merging_keeps_the_pages_and_leaves_gaps_between_runs(
            pages in proptest::collection::vec(0u32..200, 0..80),
            ranges in proptest::collection::vec((0u64..200, 1u32..50), 0..10),
        ) {
            let ram = GuestRam::new(256 * 4096).unwrap();
            let mut reclaim = Reclaim::default();
            let mut expected: BTreeSet<u64> = pages.iter().map(|page| u64::from(*page)).collect();
            for page in pages {
                reclaim.add_page(&ram, page).unwrap();
            }
            for (first, count) in ranges {
                reclaim.add_range(&ram, first * 4096, count * 4096).unwrap();
                expected.extend(first..first + u64::from(count));
            }
            let runs = reclaim.merge();
            let got: Vec<u64> = runs.iter().flat_map(|(first, count)| *first..first + count).collect();
            prop_assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
            prop_assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
        }
    }
}
