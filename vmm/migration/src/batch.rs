//! Pages on their way: their numbers first, then the contents of those that are not zero. So contents are read from guest
//! memory straight into the place they are sent from.
//!
//! Layout: `u32` count, `u64` head per page (`page << 1 | has_content`), then 4096 bytes for each page with content.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mycelium_ram_core::PageIndex;
use mycelium_ram_core::codec::DecodeError;
use mycelium_ram_core::page_codec::{PAGE_BYTES, is_zero};

use crate::limits::BATCH_PAGES_MAX;

/// The contents of a page.
pub type Page = [u8; PAGE_BYTES];

/// Bytes of the largest batch.
pub const BATCH_BYTES_MAX: usize = 4 + BATCH_PAGES_MAX * (8 + PAGE_BYTES);

/// Gathers pages into one batch.
#[derive(Debug, Default)]
pub struct BatchWriter {
    heads: BytesMut,
    contents: BytesMut,
    pages: u32,
}

impl BatchWriter {
    /// Adds a page, whose contents `read` puts into place; returns them, or `None` for a page of zeros.
    pub fn push(&mut self, page: PageIndex, read: impl FnOnce(&mut Page)) -> Option<&Page> {
        if self.contents.capacity() - self.contents.len() < PAGE_BYTES {
            self.contents.reserve(PAGE_BYTES * BATCH_PAGES_MAX);
        }
        let start = self.contents.len();
        self.contents.resize(start + PAGE_BYTES, 0);
        let place = self.contents[start..].first_chunk_mut().expect("room for a page was just made");
        read(place);
        let zero = is_zero(place);
        if zero {
            self.contents.truncate(start);
        }
        self.heads.put_u64_le(page.0 << 1 | u64::from(!zero));
        self.pages += 1;
        self.contents[start..].first_chunk()
    }

    /// Pages gathered.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages as usize
    }

    /// Whether it has as many pages as a batch may have.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pages() >= BATCH_PAGES_MAX
    }

    /// Takes the batch out, in parts that follow each other, and starts an empty one.
    pub fn finish(&mut self) -> [Bytes; 2] {
        let mut heads = BytesMut::with_capacity(4 + self.heads.len());
        heads.put_u32_le(std::mem::take(&mut self.pages));
        heads.put_slice(&self.heads);
        self.heads.clear();
        [heads.freeze(), self.contents.split().freeze()]
    }
}

/// Hands each page of a batch to `each`; `None` stands for a page of zeros. Nothing is handed out unless the whole batch is
/// well formed.
///
/// # Errors
/// [`DecodeError`] when it is malformed or names a page the guest (of `pages` pages) does not have.
pub fn read(
    batch: &Bytes,
    pages: u64,
    mut each: impl FnMut(PageIndex, Option<&Page>),
) -> Result<(), DecodeError> {
    let (heads, contents) = split(batch)?;
    let mut with_content = 0;
    for head in heads.chunks_exact(8).map(|mut head| head.get_u64_le()) {
        if head >> 1 >= pages {
            return Err(DecodeError::Value { what: "page index", got: head >> 1 });
        }
        with_content += usize::from(head & 1 == 1);
    }
    let (contents, rest) = contents.as_chunks::<PAGE_BYTES>();
    match contents.len().cmp(&with_content) {
        std::cmp::Ordering::Less => return Err(DecodeError::Truncated { what: "page" }),
        std::cmp::Ordering::Equal if rest.is_empty() => {}
        _ => {
            let extra = (contents.len() - with_content) * PAGE_BYTES + rest.len();
            return Err(DecodeError::Trailing(extra));
        }
    }
    let mut contents = contents.iter();
    for head in heads.chunks_exact(8).map(|mut head| head.get_u64_le()) {
        let content = if head & 1 == 1 { contents.next() } else { None };
        each(PageIndex(head >> 1), content);
    }
    Ok(())
}

fn split(batch: &Bytes) -> Result<(&[u8], &[u8]), DecodeError> {
    let what = "page heads";
    let (count, rest) = batch.split_first_chunk().ok_or(DecodeError::Truncated { what })?;
    let got = u32::from_le_bytes(*count) as usize;
    if got > BATCH_PAGES_MAX {
        return Err(DecodeError::TooLong { what, got, max: BATCH_PAGES_MAX });
    }
    rest.split_at_checked(got * 8).ok_or(DecodeError::Truncated { what })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(pages: &[(u64, u8)]) -> Bytes {
        let mut writer = BatchWriter::default();
        for (page, fill) in pages {
            let content = writer.push(PageIndex(*page), |into| into.fill(*fill));
            assert_eq!(content.map(|c| c[4095]), (*fill != 0).then_some(*fill));
        }
        assert_eq!(writer.pages(), pages.len());
        let batch = writer.finish().concat().into();
        assert_eq!(writer.pages(), 0);
        batch
    }

    #[test]
    fn a_page_beyond_the_guest_is_refused_before_anything_is_handed_out() {
        let error = read(&batch(&[(1, 7), (9, 0)]), 9, |_, _| panic!("handed out")).unwrap_err();
        assert_eq!(error, DecodeError::Value { what: "page index", got: 9 });
    }

    #[test]
    fn contents_without_a_page_are_refused() {
        let mut bytes = batch(&[(1, 7)]).to_vec();
        bytes.push(0);
        assert_eq!(read(&bytes.into(), 9, |_, _| ()), Err(DecodeError::Trailing(1)));
    }

    proptest! {
        #[test]
        fn pages_survive_the_wire(pages in proptest::collection::vec((0u64..100, 0u8..3), 0..40)) {
            let bytes = batch(&pages);
            prop_assert!(bytes.len() <= BATCH_BYTES_MAX);
            let mut got = Vec::new();
            read(&bytes, 100, |page, content| got.push((page.0, content.map_or(0, |c| c[9])))).unwrap();
            prop_assert_eq!(got, pages);
            for cut in [0, 3, bytes.len() / 2, bytes.len() - 1] {
                prop_assert!(read(&bytes.slice(..cut), 100, |_, _| panic!()).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let _ = read(&Bytes::from(data), 64, |_, _| {});
        }
    }
}
