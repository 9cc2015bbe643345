//! Pages on the wire: a sequence of records, each a `u64` head (`page << 1 | has_content`) and, unless the page is all
//! zero, its 4096 bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::DecodeError;
use crate::ids::PageIndex;

/// Bytes of a guest page.
pub const PAGE_BYTES: usize = 4096;
/// Pages after which a part is full.
pub const PART_PAGES: usize = 256;
/// Bytes of the largest part.
pub const PART_BYTES_MAX: usize = PART_PAGES * (PAGE_BYTES + 8);

/// Gathers pages into one part.
#[derive(Debug, Default)]
pub struct PartWriter {
    out: BytesMut,
    pages: usize,
}

impl PartWriter {
    /// Adds a page.
    pub fn push(&mut self, page: PageIndex, content: &[u8; PAGE_BYTES]) {
        if self.out.capacity() == self.out.len() {
            self.out.reserve(PAGE_BYTES * 64);
        }
        let has_content = !is_zero(content);
        self.out.put_u64_le(page.0 << 1 | u64::from(has_content));
        if has_content {
            self.out.put_slice(content);
        }
        self.pages += 1;
    }

    /// Pages gathered.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Whether the part has as many pages as a part may have.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pages >= PART_PAGES
    }

    /// Takes the part out and starts an empty one.
    pub fn finish(&mut self) -> Bytes {
        self.pages = 0;
        self.out.split().freeze()
    }
}

/// Whether a page is all zero.
#[must_use]
pub fn is_zero(content: &[u8; PAGE_BYTES]) -> bool {
    // Wide chunks let the compiler compare vectors; most pages differ in the first one.
    content.as_chunks::<64>().0.iter().all(|chunk| chunk.iter().fold(0, |a, b| a | b) == 0)
}

/// Hands each page of a part to `apply`; `None` stands for a zero page. Nothing is applied unless the whole part is
/// well formed.
///
/// # Errors
/// [`DecodeError`] when it is malformed or names a page the guest (of `pages` pages) does not have.
pub fn apply_part(
    part: &Bytes,
    pages: u64,
    mut apply: impl FnMut(PageIndex, Option<&[u8; PAGE_BYTES]>),
) -> Result<(), DecodeError> {
    walk(part, pages, |_, _| {})?;
    walk(part, pages, &mut apply)
}

fn walk(
    part: &Bytes,
    pages: u64,
    mut visit: impl FnMut(PageIndex, Option<&[u8; PAGE_BYTES]>),
) -> Result<(), DecodeError> {
    let mut rest = &part[..];
    while !rest.is_empty() {
        if rest.len() < 8 {
            return Err(DecodeError::Truncated { what: "page head" });
        }
        let head = rest.get_u64_le();
        let page = PageIndex(head >> 1);
        if page.0 >= pages {
            return Err(DecodeError::Value { what: "page index", got: page.0 });
        }
        if head & 1 == 0 {
            visit(page, None);
            continue;
        }
        let Some((content, tail)) = rest.split_first_chunk() else {
            return Err(DecodeError::Truncated { what: "page" });
        };
        visit(page, Some(content));
        rest = tail;
    }
    Ok(())
}

/// Entry point for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn fuzz_part(data: &[u8]) {
    let _ = apply_part(&Bytes::copy_from_slice(data), 1 << 20, |page, _| assert!(page.0 < 1 << 20));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_beyond_the_guest_is_refused_before_anything_is_applied() {
        let mut w = PartWriter::default();
        w.push(PageIndex(1), &[7; PAGE_BYTES]);
        w.push(PageIndex(9), &[0; PAGE_BYTES]);
        let part = w.finish();
        let err = apply_part(&part, 9, |_, _| panic!("applied")).unwrap_err();
        assert_eq!(err, DecodeError::Value { what: "page index", got: 9 });
    }

    proptest! {
        #[test]
        fn pages_survive_the_wire(pages in proptest::collection::vec((0u64..100, 0u8..3), 0..40)) {
            let mut w = PartWriter::default();
            for (p, fill) in &pages {
                w.push(PageIndex(*p), &[*fill; PAGE_BYTES]);
            }
            prop_assert_eq!(w.pages(), pages.len());
            let mut got = Vec::new();
            apply_part(&w.finish(), 100, |p, c| got.push((p.0, c.map_or(0, |c| c[4095])))).unwrap();
            prop_assert_eq!(got, pages);
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = apply_part(&Bytes::from(data), 64, |_, _| {});
        }
    }
}
