//! LZ4 for pages that go whole: worth its time where the link is what epochs wait for, and where pages shrink.

use bytes::{BufMut, BytesMut};

use crate::codec::DecodeError;
use crate::page_codec::{PAGE_BYTES, Page};

/// Bytes above which a page is not worth unpacking.
pub const PACKED_BYTES_MAX: usize = PAGE_BYTES * 3 / 4;
/// Pages in a row that did not shrink, after which some are not tried.
const PATIENCE: u32 = 16;
/// Pages not tried then; the next ones that do not shrink either double it.
const REST: u32 = 64;
const REST_MAX: u32 = 4096;

/// Packs pages, and learns when that is in vain.
#[derive(Debug)]
pub struct Packer {
    buffer: Box<[u8]>,
    in_vain: u32,
    rest: u32,
    resting: u32,
}

impl Default for Packer {
    fn default() -> Self {
        let buffer = vec![0; lz4_flex::block::get_maximum_output_size(PAGE_BYTES)].into_boxed_slice();
        Self { buffer, in_vain: 0, rest: REST, resting: 0 }
    }
}

impl Packer {
    /// The packed page, if it is worth it.
    pub fn pack(&mut self, content: &Page) -> Option<&[u8]> {
        if self.resting > 0 {
            self.resting -= 1;
            return None;
        }
        let packed = lz4_flex::block::compress_into(content, &mut self.buffer).ok();
        match packed.filter(|length| *length <= PACKED_BYTES_MAX) {
            Some(length) => {
                (self.in_vain, self.rest) = (0, REST);
                Some(&self.buffer[..length])
            }
            None => {
                self.in_vain += 1;
                if self.in_vain >= PATIENCE {
                    (self.in_vain, self.resting) = (0, self.rest);
                    self.rest = (self.rest * 2).min(REST_MAX);
                }
                None
            }
        }
    }
}

/// Appends a packed page with its length.
pub(crate) fn put_packed(packed: &[u8], out: &mut BytesMut) {
    out.put_u16_le(u16::try_from(packed.len()).expect("PACKED_BYTES_MAX fits"));
    out.put_slice(packed);
}

/// Unpacks a page.
///
/// # Errors
/// [`DecodeError`] when it is not a whole page.
pub(crate) fn unpack(packed: &[u8], page: &mut Page) -> Result<(), DecodeError> {
    match lz4_flex::block::decompress_into(packed, page) {
        Ok(PAGE_BYTES) => Ok(()),
        Ok(got) => Err(DecodeError::Value { what: "length of a packed page", got: got as u64 }),
        Err(_) => Err(DecodeError::Truncated { what: "packed page" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(seed: u64) -> Page {
        let mut state = seed | 1;
        std::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
    }

    #[test]
    fn pages_that_do_not_shrink_are_tried_ever_less_often() {
        let mut packer = Packer::default();
        let tried = (0..10_000).filter(|n| {
            let resting = packer.resting > 0;
            assert!(packer.pack(&noise(n + 1)).is_none());
            !resting
        });
        assert!(tried.count() < 200);
        packer.resting = 0;
        assert!(packer.pack(&[7; PAGE_BYTES]).is_some());
        assert_eq!(packer.rest, REST, "what shrinks is tried again");
    }

    proptest! {
        #[test]
        fn a_packed_page_is_the_page(fills in proptest::collection::vec((0..PAGE_BYTES, any::<u8>()), 0..30)) {
            let mut page = [0; PAGE_BYTES];
            fills.iter().for_each(|(at, fill)| page[*at..].fill(*fill));
            let mut packer = Packer::default();
            let mut got = [1; PAGE_BYTES];
            unpack(packer.pack(&page).expect("long runs shrink"), &mut got).unwrap();
            prop_assert_eq!(got, page);
        }

        #[test]
        fn garbage_never_panics(packed in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = unpack(&packed, &mut [0; PAGE_BYTES]);
        }
    }
}
