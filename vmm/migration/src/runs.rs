//! Sets of pages on their way: runs of first page (`u64`) and length (`u32`), in ascending order.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mycelium_ram_core::codec::DecodeError;
use mycelium_ram_core::{PageIndex, PageSet};

use crate::limits::RUNS_MAX;

const RUN_BYTES: usize = 12;

/// Bytes of the largest piece.
pub const RUNS_BYTES_MAX: usize = RUNS_MAX * RUN_BYTES;

/// The set in pieces, each of which can be sent alone. The empty set has none.
#[must_use]
pub fn write(pages: &PageSet) -> Vec<Bytes> {
    let mut runs: Vec<(u64, u32)> = Vec::new();
    for PageIndex(page) in pages.iter() {
        match runs.last_mut() {
            Some((first, length)) if *first + u64::from(*length) == page && *length < u32::MAX => {
                *length += 1;
            }
            _ => runs.push((page, 1)),
        }
    }
    runs.chunks(RUNS_MAX).map(piece).collect()
}

fn piece(runs: &[(u64, u32)]) -> Bytes {
    let mut out = BytesMut::with_capacity(runs.len() * RUN_BYTES);
    for (first, length) in runs {
        out.put_u64_le(*first);
        out.put_u32_le(*length);
    }
    out.freeze()
}

/// Adds the pages of a piece to `into`.
///
/// # Errors
/// [`DecodeError`] when it is malformed, or names pages the guest does not have; some may have been added.
pub fn read(piece: &Bytes, into: &mut PageSet) -> Result<(), DecodeError> {
    let (runs, rest) = piece.as_chunks::<RUN_BYTES>();
    if !rest.is_empty() {
        return Err(DecodeError::Truncated { what: "run of pages" });
    }
    // Each run begins after the one before, so a piece cannot ask for more work than RAM has pages.
    let mut next = 0;
    for mut run in runs.iter().map(|run| &run[..]) {
        let (first, length) = (run.get_u64_le(), u64::from(run.get_u32_le()));
        let wrong = |what, got| Err(DecodeError::Value { what, got });
        if first < next || first >= into.capacity() {
            return wrong("first page of a run", first);
        }
        if length == 0 || length > into.capacity() - first {
            return wrong("length of a run", length);
        }
        next = first + length;
        (first..next).for_each(|page| into.insert(PageIndex(page)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sets_survive_the_wire(pages in proptest::collection::btree_set(0u64..3000, 0..300)) {
            let mut set = PageSet::empty(3000);
            pages.iter().for_each(|page| set.insert(PageIndex(*page)));
            let mut got = PageSet::empty(3000);
            for piece in write(&set) {
                read(&piece, &mut got).unwrap();
            }
            prop_assert_eq!(got.iter().map(|page| page.0).collect::<BTreeSet<_>>(), pages);
        }

        #[test]
        fn garbage_never_panics_nor_leaves_the_guest(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut set = PageSet::empty(64);
            let _ = read(&Bytes::from(data), &mut set);
            prop_assert!(set.iter().all(|page| page.0 < 64));
        }
    }

    #[test]
    fn pages_beyond_the_guest_are_refused() {
        let mut set = PageSet::empty(10);
        assert!(read(&piece(&[(8, 3)]), &mut set).is_err());
        assert!(read(&piece(&[(5, 1), (4, 1)]), &mut set).is_err());
        assert!(read(&piece(&[(u64::MAX, u32::MAX)]), &mut set).is_err());
    }
}
