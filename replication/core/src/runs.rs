//! What of a page differs from an earlier content of it: runs of changed 8-byte words.
//!
//! On the wire a run is `skip: u8` (unchanged words before it), `words: u8`, then the words themselves. A gap of more than
//! 255 words is a run of none. Words, not bytes: a run's head costs two bytes, and guests write words.

use bytes::{BufMut, BytesMut};

use crate::codec::DecodeError;
use crate::page_codec::{PAGE_BYTES, Page};

const WORD: usize = 8;
const WORDS: usize = PAGE_BYTES / WORD;
/// Bytes compared at once.
const BLOCK: usize = 128;
const BLOCK_WORDS: usize = BLOCK / WORD;
/// Longest gap and longest run that a head can say.
const STEP: usize = u8::MAX as usize;

/// Bytes of runs beyond which the whole page is sent: it is read back faster, and would compress better.
pub const RUNS_BYTES_MAX: usize = PAGE_BYTES / 2;

/// Appends the runs that make `old` into `new`. Says false, and appends nothing, when they would be longer than
/// [`RUNS_BYTES_MAX`].
pub fn put_runs(old: &Page, new: &Page, out: &mut BytesMut) -> bool {
    let start = out.len();
    let blocks = (old.as_chunks::<BLOCK>().0, new.as_chunks::<BLOCK>().0);
    let (old, new) = (old.as_chunks::<WORD>().0, new.as_chunks::<WORD>().0);
    let mut written_to = 0;
    let mut at = 0;
    while let Some(changed) = next_changed(at, blocks, (old, new)) {
        let end = (changed..WORDS).find(|n| old[*n] == new[*n]).unwrap_or(WORDS);
        if out.len() - start + (end - changed) * WORD > RUNS_BYTES_MAX {
            out.truncate(start);
            return false;
        }
        put_run(changed - written_to, &new[changed..end], out);
        (written_to, at) = (end, end);
    }
    let fits = out.len() - start <= RUNS_BYTES_MAX;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// The next word from `at` on that has changed. Most blocks have not, and are compared at once.
fn next_changed(
    mut at: usize,
    (old_blocks, new_blocks): (&[[u8; BLOCK]], &[[u8; BLOCK]]),
    (old, new): (&[[u8; WORD]], &[[u8; WORD]]),
) -> Option<usize> {
    while at < WORDS {
        let block = at / BLOCK_WORDS;
        let end = (block + 1) * BLOCK_WORDS;
        if old_blocks[block] != new_blocks[block]
            && let Some(changed) = (at..end).find(|n| old[*n] != new[*n])
        {
            return Some(changed);
        }
        at = end;
    }
    None
}

fn put_run(mut gap: usize, words: &[[u8; WORD]], out: &mut BytesMut) {
    while gap > STEP {
        out.put_slice(&[u8::MAX, 0]);
        gap -= STEP;
    }
    for part in words.chunks(STEP) {
        out.put_slice(&[step(gap), step(part.len())]);
        out.put_slice(part.as_flattened());
        gap = 0;
    }
}

fn step(words: usize) -> u8 {
    u8::try_from(words).expect("split into steps by the caller")
}

/// Checked runs of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs<'a>(&'a [u8]);

impl<'a> Runs<'a> {
    /// Checks that the runs end where `body` ends and stay inside a page.
    ///
    /// # Errors
    /// [`DecodeError`] when they do not.
    pub fn parse(body: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut rest, mut at) = (body, 0);
        while let Some((head, tail)) = rest.split_first_chunk::<2>() {
            let words = usize::from(head[1]);
            at += usize::from(head[0]) + words;
            if at > WORDS {
                return Err(DecodeError::TooLong { what: "runs of a page", got: at * WORD, max: PAGE_BYTES });
            }
            rest = tail.get(words * WORD..).ok_or(DecodeError::Truncated { what: "run" })?;
        }
        if rest.is_empty() { Ok(Self(body)) } else { Err(DecodeError::Truncated { what: "run head" }) }
    }

    /// Each run with its offset in the page, in bytes.
    pub fn iter(self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let (mut rest, mut at) = (self.0, 0);
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_first_chunk::<2>()?;
            let offset = at + usize::from(head[0]) * WORD;
            let (run, tail) = tail.split_at(usize::from(head[1]) * WORD);
            (rest, at) = (tail, offset + run.len());
            Some((offset, run))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn patched(old: &Page, body: &[u8]) -> Page {
        let mut page = *old;
        for (at, run) in Runs::parse(body).unwrap().iter() {
            page[at..at + run.len()].copy_from_slice(run);
        }
        page
    }

    #[test]
    fn an_unchanged_page_costs_nothing_and_a_changed_one_is_sent_whole() {
        let mut out = BytesMut::new();
        assert!(put_runs(&[1; PAGE_BYTES], &[1; PAGE_BYTES], &mut out));
        assert!(out.is_empty());
        assert!(!put_runs(&[1; PAGE_BYTES], &[2; PAGE_BYTES], &mut out));
        assert!(out.is_empty());
    }

    #[test]
    fn a_change_in_every_other_word_stays_within_the_bound() {
        let mut new = [0; PAGE_BYTES];
        new.iter_mut().step_by(16).for_each(|b| *b = 1);
        let mut out = BytesMut::from(&b"before"[..]);
        assert!(!put_runs(&[0; PAGE_BYTES], &new, &mut out));
        assert_eq!(out, &b"before"[..]);
    }

    #[test]
    fn runs_past_the_page_or_cut_short_are_refused() {
        let past = [255, 0, 255, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(Runs::parse(&past), Err(DecodeError::TooLong { .. })));
        assert!(matches!(Runs::parse(&[0, 1, 7]), Err(DecodeError::Truncated { .. })));
        assert!(matches!(Runs::parse(&[3]), Err(DecodeError::Truncated { .. })));
    }

    proptest! {
        #[test]
        fn runs_make_the_old_page_into_the_new(writes in proptest::collection::vec((0..PAGE_BYTES, 1usize..900, any::<u8>()), 0..6)) {
            let old: Page = std::array::from_fn(|n| u8::try_from(n % 251).unwrap());
            let mut new = old;
            for (at, length, fill) in writes {
                new[at..(at + length).min(PAGE_BYTES)].fill(fill);
            }
            let mut out = BytesMut::new();
            if put_runs(&old, &new, &mut out) {
                prop_assert!(out.len() <= RUNS_BYTES_MAX);
                prop_assert_eq!(patched(&old, &out), new);
            }
        }

        #[test]
        fn whatever_is_accepted_stays_inside_the_page(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(runs) = Runs::parse(&body) {
                prop_assert!(runs.iter().all(|(at, run)| at + run.len() <= PAGE_BYTES));
            }
        }
    }
}
