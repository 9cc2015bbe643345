//! Pages on the wire: a sequence of records, each a head (`page << 2 | kind`, LEB128) and what its kind asks for: nothing (a
//! page of zeros), the page's 4096 bytes, a length (`u16`) and [runs](crate::runs) of what differs from what the replica
//! holds, or a length and the page [packed](crate::compress).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::DecodeError;
use crate::compress::{PACKED_BYTES_MAX, Packer, put_packed, unpack};
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
const PACKED: u64 = 3;

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
    packer: Option<Packer>,
}

impl PartWriter {
    /// Packs pages from now on, or does not.
    pub fn set_packing(&mut self, packing: bool) {
        if packing != self.packer.is_some() {
            self.packer = packing.then(Packer::default);
        }
    }

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
                self.push_whole(page, content);
            }
        }
        self.pages += 1;
        true
    }

    fn push_whole(&mut self, page: PageIndex, content: &Page) {
        if is_zero(content) {
            put_head(&mut self.out, page, ZERO);
        } else if let Some(packed) = self.packer.as_mut().and_then(|packer| packer.pack(content)) {
            put_head(&mut self.out, page, PACKED);
            put_packed(packed, &mut self.out);
        } else {
            put_head(&mut self.out, page, WHOLE);
            self.out.put_slice(content);
        }
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

/// A part that is well formed.
#[derive(Debug)]
pub struct CheckedPart {
    part: Bytes,
    pages: u64,
}

impl CheckedPart {
    /// Checks a part for a guest of `pages` pages.
    ///
    /// # Errors
    /// [`DecodeError`] when it is malformed or names a page the guest does not have.
    pub fn check(part: Bytes, pages: u64) -> Result<Self, DecodeError> {
        walk(&part, pages, |_, _| {})?;
        Ok(Self { part, pages })
    }

    /// Hands each page to `apply`, in order.
    ///
    /// # Panics
    /// Never: the part was checked.
    pub fn apply(&self, apply: impl FnMut(PageIndex, Change<'_>)) {
        walk(&self.part, self.pages, apply).expect("the part was checked");
    }
}

fn walk(part: &Bytes, pages: u64, mut visit: impl FnMut(PageIndex, Change<'_>)) -> Result<(), DecodeError> {
    let (mut rest, mut unpacked) = (&part[..], [0; PAGE_BYTES]);
    while !rest.is_empty() {
        let head = get_head(&mut rest)?;
        let page = PageIndex(head >> 2);
        if page.0 >= pages {
            return Err(DecodeError::Value { what: "page index", got: page.0 });
        }
        let change = match head & 3 {
            WHOLE => {
                let (content, tail) =
                    rest.split_first_chunk().ok_or(DecodeError::Truncated { what: "page" })?;
                rest = tail;
                Change::Whole(content)
            }
            RUNS => Change::Runs(Runs::parse(get_body(&mut rest, "runs of a page", RUNS_BYTES_MAX)?)?),
            PACKED => {
                unpack(get_body(&mut rest, "packed page", PACKED_BYTES_MAX)?, &mut unpacked)?;
                Change::Whole(&unpacked)
            }
            _ => Change::Zero,
        };
        visit(page, change);
    }
    Ok(())
}

fn get_body<'a>(rest: &mut &'a [u8], what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
    if rest.len() < 2 {
        return Err(DecodeError::Truncated { what });
    }
    let got = usize::from(rest.get_u16_le());
    if got > max {
        return Err(DecodeError::TooLong { what, got, max });
    }
    let (body, tail) = rest.split_at_checked(got).ok_or(DecodeError::Truncated { what })?;
    *rest = tail;
    Ok(body)
}

/// Entry point for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn fuzz_part(data: &[u8]) {
    if let Ok(part) = CheckedPart::check(Bytes::copy_from_slice(data), 1 << 20) {
        part.apply(|page, change| {
            assert!(page.0 < 1 << 20);
            change.apply(&mut [0; PAGE_BYTES]);
        });
    }
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
        let err = CheckedPart::check(part, 9).unwrap_err();
        assert_eq!(err, DecodeError::Value { what: "page index", got: 9 });
    }

    proptest! {
        #[test]
        fn pages_survive_the_wire(packing in any::<bool>(), pages in proptest::collection::vec((0u64..100, 0u8..3, 0..PAGE_BYTES, any::<bool>()), 0..40)) {
            let mut w = PartWriter::default();
            w.set_packing(packing);
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
            let part = CheckedPart::check(part, 100).unwrap();
            part.apply(|page, change| change.apply(&mut held[usize::try_from(page.0).unwrap()]));
            prop_assert_eq!(held, sent);
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
            if let Ok(part) = CheckedPart::check(Bytes::from(data), 64) {
                part.apply(|_, _| {});
            }
        }
    }
}
