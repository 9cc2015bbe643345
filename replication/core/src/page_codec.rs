//! Pages on the wire: a sequence of records, each a head (`page << 2 | kind`, LEB128) and what its kind asks for: nothing (a
//! page of zeros), the page's 4096 bytes, or a length (`u16`) and [runs](crate::runs) of what differs from what the replica
//! holds.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::DecodeError;
use crate::ids::PageIndex;
use crate::runs::{RUNS_BYTES_MAX, Runs, put_runs};

/// Bytes of a guest page.
pub const PAGE_BYTES: usize = 4096;
/// Pages after which a part is full.
pub const PART_PAGES: usize = 256;
/// Bytes of the longest head.
const HEAD_BYTES: usize = 10;
/// Bytes of the largest part.
pub const PART_BYTES_MAX: usize = PART_PAGES * (PAGE_BYTES + HEAD_BYTES);

/// The content of a page.
pub type Page = [u8; PAGE_BYTES];

/// What becomes of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// It is all zero now.
    Zero,
    /// This is its content now.
    Whole(&'a Page),
    /// This of it has changed.
    Runs(Runs<'a>),
}

impl Change<'_> {
    /// Makes the change to a page in memory.
    pub fn apply(self, page: &mut Page) {
        match self {
            Self::Zero => page.fill(0),
            Self::Whole(content) => *page = *content,
            Self::Runs(runs) => {
                runs.iter().for_each(|(at, run)| page[at..at + run.len()].copy_from_slice(run));
            }
        }
    }
}

const ZERO: u64 = 0;
const WHOLE: u64 = 1;
const RUNS: u64 = 2;

/// What a page differs from what the replica holds of it.
enum Difference {
    None,
    /// Its runs are written.
    Small,
    /// Or unknown.
    Large,
}

/// Gathers pages into one part.
#[derive(Debug, Default)]
pub struct PartWriter {
    out: BytesMut,
    pages: usize,
}

impl PartWriter {
    /// Adds a page; `held` is what the replica holds of it, where that is known. Adds nothing, and says so, when the replica
    /// holds just that.
    pub fn push(&mut self, page: PageIndex, content: &Page, held: Option<&Page>) -> bool {
        if self.out.capacity() - self.out.len() < HEAD_BYTES + PAGE_BYTES {
            self.out.reserve(PAGE_BYTES * 64);
        }
        let start = self.out.len();
        match held.map_or(Difference::Large, |held| self.push_runs(page, held, content)) {
            Difference::None => {
                self.out.truncate(start);
                return false;
            }
            Difference::Small => {}
            Difference::Large => {
                self.out.truncate(start);
                let zero = is_zero(content);
                put_head(&mut self.out, page, if zero { ZERO } else { WHOLE });
                if !zero {
                    self.out.put_slice(content);
                }
            }
        }
        self.pages += 1;
        true
    }

    fn push_runs(&mut self, page: PageIndex, held: &Page, content: &Page) -> Difference {
        put_head(&mut self.out, page, RUNS);
        let length_at = self.out.len();
        self.out.put_u16_le(0);
        if !put_runs(held, content, &mut self.out) {
            return Difference::Large;
        }
        let length = self.out.len() - length_at - 2;
        let length = u16::try_from(length).expect("RUNS_BYTES_MAX fits");
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_le_bytes());
        if length == 0 { Difference::None } else { Difference::Small }
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
pub fn is_zero(content: &Page) -> bool {
    // Wide chunks let the compiler compare vectors; most pages differ in the first one.
    content.as_chunks::<64>().0.iter().all(|chunk| chunk.iter().fold(0, |a, b| a | b) == 0)
}

fn put_head(out: &mut BytesMut, page: PageIndex, kind: u64) {
    let mut rest = page.0 << 2 | kind;
    while rest >= 0x80 {
        out.put_u8(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest.to_le_bytes()[0]);
}

fn get_head(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut head = 0;
    for shift in (0..u64::BITS).step_by(7) {
        if rest.is_empty() {
            return Err(DecodeError::Truncated { what: "page head" });
        }
        let byte = rest.get_u8();
        head |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(head);
        }
    }
    Err(DecodeError::TooLong { what: "page head", got: HEAD_BYTES + 1, max: HEAD_BYTES })
}

/// Hands each page of a part to `apply`. Nothing is applied unless the whole part is well formed.
///
/// # Errors
/// [`DecodeError`] when it is malformed or names a page the guest (of `pages` pages) does not have.
pub fn apply_part(
    part: &Bytes,
    pages: u64,
    mut apply: impl FnMut(PageIndex, Change<'_>),
) -> Result<(), DecodeError> {
    walk(part, pages, |_, _| {})?;
    walk(part, pages, &mut apply)
}

fn walk(part: &Bytes, pages: u64, mut visit: impl FnMut(PageIndex, Change<'_>)) -> Result<(), DecodeError> {
    let mut rest = &part[..];
    while !rest.is_empty() {
        let head = get_head(&mut rest)?;
        let page = PageIndex(head >> 2);
        if page.0 >= pages {
            return Err(DecodeError::Value { what: "page index", got: page.0 });
        }
        visit(page, get_change(head & 3, &mut rest)?);
    }
    Ok(())
}

fn get_change<'a>(kind: u64, rest: &mut &'a [u8]) -> Result<Change<'a>, DecodeError> {
    match kind {
        ZERO => Ok(Change::Zero),
        WHOLE => {
            let (content, tail) = rest.split_first_chunk().ok_or(DecodeError::Truncated { what: "page" })?;
            *rest = tail;
            Ok(Change::Whole(content))
        }
        RUNS => {
            if rest.len() < 2 {
                return Err(DecodeError::Truncated { what: "length of runs" });
            }
            let length = usize::from(rest.get_u16_le());
            if length > RUNS_BYTES_MAX {
                return Err(DecodeError::TooLong {
                    what: "runs of a page",
                    got: length,
                    max: RUNS_BYTES_MAX,
                });
            }
            let (body, tail) =
                rest.split_at_checked(length).ok_or(DecodeError::Truncated { what: "runs of a page" })?;
            *rest = tail;
            Ok(Change::Runs(Runs::parse(body)?))
        }
        other => Err(DecodeError::Value { what: "kind of page", got: other }),
    }
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
        w.push(PageIndex(1), &[7; PAGE_BYTES], None);
        w.push(PageIndex(9), &[0; PAGE_BYTES], None);
        let part = w.finish();
        let err = apply_part(&part, 9, |_, _| panic!("applied")).unwrap_err();
        assert_eq!(err, DecodeError::Value { what: "page index", got: 9 });
    }

    proptest! {
        #[test]
        fn pages_survive_the_wire(pages in proptest::collection::vec((0u64..100, 0u8..3, 0..PAGE_BYTES, any::<bool>()), 0..40)) {
            let mut w = PartWriter::default();
            let (mut sent, mut held) = (vec![[0; PAGE_BYTES]; 100], vec![[0; PAGE_BYTES]; 100]);
            for (page, fill, from, known) in &pages {
                let content = &mut sent[usize::try_from(*page).unwrap()];
                let before = *content;
                content[*from..].fill(*fill);
                w.push(PageIndex(*page), content, known.then_some(&before));
            }
            prop_assert!(w.pages() <= pages.len());
            let part = w.finish();
            prop_assert!(part.len() <= pages.len() * (PAGE_BYTES + HEAD_BYTES));
            apply_part(&part, 100, |page, change| change.apply(&mut held[usize::try_from(page.0).unwrap()])).unwrap();
            prop_assert_eq!(held, sent);
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = apply_part(&Bytes::from(data), 64, |_, _| {});
        }
    }
}
