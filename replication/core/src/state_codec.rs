//! A machine's saved state on the wire: whole, or what differs from the state at the end of the epoch before.
//!
//! A byte says which. Of a difference, each 4096 bytes of the state follow as a length (`u16`) and [runs](crate::runs), or as the
//! bytes themselves where the length is `WHOLE_PIECE`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::DecodeError;
use crate::limits;
use crate::page_codec::{PAGE_BYTES, Page};
use crate::runs::{Runs, put_runs};

const WHOLE: u8 = 0;
const DIFFERENCE: u8 = 1;
const WHOLE_PIECE: u16 = u16::MAX;

/// The state as it is sent to a replica that holds `base`, the state of the epoch before.
#[must_use]
pub fn encode(base: Option<&[u8]>, state: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(state.len() + 64);
    match base.filter(|base| base.len() == state.len()) {
        Some(base) => {
            out.put_u8(DIFFERENCE);
            base.chunks(PAGE_BYTES)
                .zip(state.chunks(PAGE_BYTES))
                .for_each(|(old, new)| put_piece(old, new, &mut out));
        }
        None => {
            out.put_u8(WHOLE);
            out.put_slice(state);
        }
    }
    out.freeze()
}

fn put_piece(old: &[u8], new: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.put_u16_le(0);
    let length = if put_runs(&padded(old), &padded(new), out) {
        u16::try_from(out.len() - start - 2).expect("runs are bounded")
    } else {
        out.put_slice(new);
        WHOLE_PIECE
    };
    out[start..start + 2].copy_from_slice(&length.to_le_bytes());
}

fn padded(piece: &[u8]) -> Page {
    let mut page = [0; PAGE_BYTES];
    page[..piece.len()].copy_from_slice(piece);
    page
}

/// The state that was sent, to a replica that holds `base`.
///
/// # Errors
/// [`DecodeError`] when it is malformed, or differs from a state that there is not.
pub fn decode(base: Option<&[u8]>, sent: &Bytes) -> Result<Bytes, DecodeError> {
    let mut rest = sent.clone();
    if rest.is_empty() {
        return Err(DecodeError::Truncated { what: "state" });
    }
    match (rest.get_u8(), base) {
        (WHOLE, _) if rest.len() > limits::STATE_BYTES => {
            Err(DecodeError::TooLong { what: "state", got: rest.len(), max: limits::STATE_BYTES })
        }
        (WHOLE, _) => Ok(rest),
        (DIFFERENCE, Some(base)) => {
            let mut state = BytesMut::with_capacity(base.len());
            base.chunks(PAGE_BYTES).try_for_each(|old| get_piece(old, &mut rest, &mut state))?;
            if rest.is_empty() { Ok(state.freeze()) } else { Err(DecodeError::Trailing(rest.len())) }
        }
        (kind, _) => Err(DecodeError::Value { what: "kind of state", got: u64::from(kind) }),
    }
}

fn get_piece(old: &[u8], rest: &mut Bytes, state: &mut BytesMut) -> Result<(), DecodeError> {
    let short = DecodeError::Truncated { what: "state" };
    if rest.len() < 2 {
        return Err(short);
    }
    match rest.get_u16_le() {
        WHOLE_PIECE if rest.len() < old.len() => return Err(short),
        WHOLE_PIECE => state.put(rest.split_to(old.len())),
        length if rest.len() < usize::from(length) => return Err(short),
        length => {
            let body = rest.split_to(length.into());
            let mut page = padded(old);
            for (at, run) in Runs::parse(&body)?.iter() {
                page[at..at + run.len()].copy_from_slice(run);
            }
            state.put_slice(&page[..old.len()]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_state_that_hardly_changed_is_hardly_sent() {
        let base: Vec<u8> = (0..9000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut state = base.clone();
        state[8999] ^= 1;
        state[4096] ^= 1;
        let sent = encode(Some(&base), &state);
        assert!(sent.len() < 40, "{} bytes", sent.len());
        assert_eq!(decode(Some(&base), &sent).unwrap(), state);
        assert!(decode(None, &sent).is_err(), "there is nothing it differs from");
    }

    proptest! {
        #[test]
        fn states_survive_the_wire(base in proptest::collection::vec(any::<u8>(), 0..9000), cut in any::<bool>(), writes in proptest::collection::vec((any::<prop::sample::Index>(), 1usize..5000, any::<u8>()), 0..5)) {
            let mut state = base.clone();
            for (at, length, fill) in writes {
                if !state.is_empty() {
                    let (at, end) = (at.index(state.len()), state.len());
                    state[at..(at + length).min(end)].fill(fill);
                }
            }
            if cut {
                state.pop();
            }
            prop_assert_eq!(&decode(Some(&base), &encode(Some(&base), &state)).unwrap(), &state);
            prop_assert_eq!(&decode(Some(&base), &encode(None, &state)).unwrap(), &state);
        }

        #[test]
        fn garbage_never_panics(base in proptest::collection::vec(any::<u8>(), 0..5000), sent in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(Some(&base), &Bytes::from(sent));
        }
    }
}
