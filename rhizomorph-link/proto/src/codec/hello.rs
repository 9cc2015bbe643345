//! The first exchange of a connection: which link and path it belongs to.

use bytes::{Buf, BufMut, Bytes};

use super::VERSION;
use super::error::{Frame, FrameError};
use crate::ids::{LinkId, PathId};
use crate::limits::{LABEL_MAX, PATHS_MAX};

const HELLO_MAGIC: u32 = u32::from_be_bytes(*b"RHZh");
const WELCOME_MAGIC: u32 = u32::from_be_bytes(*b"RHZw");
const HEAD_LEN: usize = 8;
const HELLO_FIXED: usize = 16 + 1 + 1 + 4 + 2;
const FLAG_REJOIN: u8 = 1;

/// What a dialer says first on every connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The link this connection belongs to.
    pub link: LinkId,
    /// Its path within the link.
    pub path: PathId,
    /// Counts the dials of this path from 1; a higher one replaces a lower one.
    pub attempt: u32,
    /// The dialer has been welcomed to this link before: a listener that does not know it must refuse.
    pub rejoin: bool,
    /// Free text for the accepting application, at most [`LABEL_MAX`] bytes.
    pub label: Bytes,
}

impl Hello {
    /// The frame's bytes, at most [`HELLO_MAX`](crate::limits::HELLO_MAX).
    ///
    /// # Errors
    /// [`FrameError::Field`] when the label is too long.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let label_len = label_len(self.label.len())?;
        let mut frame = Vec::with_capacity(HEAD_LEN + HELLO_FIXED + self.label.len());
        put_head(&mut frame, HELLO_MAGIC, HELLO_FIXED_U16 + label_len);
        frame.put_slice(&self.link.0);
        frame.put_u8(self.path.number());
        frame.put_u8(if self.rejoin { FLAG_REJOIN } else { 0 });
        frame.put_u32(self.attempt);
        frame.put_u16(label_len);
        frame.put_slice(&self.label);
        Ok(frame)
    }

    /// Reads one whole frame.
    ///
    /// # Errors
    /// [`FrameError`], the version before anything that a later version might change.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        const KIND: Frame = Frame::Hello;
        let mut body = take_head(frame, KIND, HELLO_MAGIC)?;
        if body.len() < HELLO_FIXED {
            return Err(FrameError::Truncated(KIND));
        }
        let mut link = [0; 16];
        body.copy_to_slice(&mut link);
        let path = body.get_u8();
        let path = PathId::new(path).ok_or(FrameError::field(KIND, "path", path, PATHS_ALLOWED))?;
        let flags = body.get_u8();
        if flags & !FLAG_REJOIN != 0 {
            return Err(FrameError::field(KIND, "flags", flags, "0 or 1"));
        }
        let attempt = body.get_u32();
        let label_len = usize::from(body.get_u16());
        self::label_len(label_len)?;
        let label = exact(body, label_len, KIND)?;
        let (link, rejoin) = (LinkId(link), flags & FLAG_REJOIN != 0);
        Ok(Self { link, path, attempt, rejoin, label: Bytes::copy_from_slice(label) })
    }
}

/// What a listener answers when it takes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Drawn at random when the listener started: a dialer that sees another one knows the peer's memory is gone.
    pub instance: u64,
}

impl Welcome {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEAD_LEN + 8);
        put_head(&mut frame, WELCOME_MAGIC, 8);
        frame.put_u64(self.instance);
        frame
    }

    /// Reads one whole frame.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let body = take_head(frame, Frame::Welcome, WELCOME_MAGIC)?;
        let instance = exact(body, 8, Frame::Welcome)?.get_u64();
        Ok(Self { instance })
    }
}

const PATHS_ALLOWED: &str = "0 to 7";
const _: () = assert!(PATHS_MAX == 8, "PATHS_ALLOWED names the bound");

#[expect(clippy::cast_possible_truncation, reason = "24")]
const HELLO_FIXED_U16: u16 = HELLO_FIXED as u16;

fn label_len(len: usize) -> Result<u16, FrameError> {
    u16::try_from(len).ok().filter(|_| len <= LABEL_MAX).ok_or(FrameError::field(
        Frame::Hello,
        "label length",
        len as u64,
        "0 to 256 bytes",
    ))
}

fn put_head(frame: &mut Vec<u8>, magic: u32, body_len: u16) {
    frame.put_u32(magic);
    frame.put_u16(VERSION);
    frame.put_u16(body_len);
}

/// Checks magic, version and length; returns the body.
fn take_head(frame: &[u8], kind: Frame, magic: u32) -> Result<&[u8], FrameError> {
    let mut rest = frame;
    if rest.try_get_u32().map_err(|_| FrameError::Truncated(kind))? != magic {
        return Err(FrameError::Magic(kind));
    }
    let version = rest.try_get_u16().map_err(|_| FrameError::Truncated(kind))?;
    if version != VERSION {
        return Err(FrameError::Version(kind, version));
    }
    let len = rest.try_get_u16().map_err(|_| FrameError::Truncated(kind))?;
    exact(rest, usize::from(len), kind)
}

pub(super) fn exact(bytes: &[u8], len: usize, kind: Frame) -> Result<&[u8], FrameError> {
    match bytes.len().checked_sub(len) {
        Some(0) => Ok(bytes),
        Some(excess) => Err(FrameError::Trailing(kind, excess)),
        None => Err(FrameError::Truncated(kind)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::HELLO_MAX;

    fn hello(label: Vec<u8>) -> Hello {
        let path = PathId::new(3).unwrap();
        Hello { link: LinkId([7; 16]), path, attempt: 9, rejoin: true, label: label.into() }
    }

    #[test]
    fn the_longest_fits_its_bound_and_a_longer_label_is_refused() {
        let frame = hello(vec![b'x'; LABEL_MAX]).encode().unwrap();
        assert!(frame.len() <= HELLO_MAX);
        assert!(hello(vec![b'x'; LABEL_MAX + 1]).encode().is_err());
    }

    #[test]
    fn another_version_is_named_before_anything_else() {
        let mut frame = hello(vec![]).encode().unwrap();
        frame[5] = 9;
        frame.truncate(6);
        assert_eq!(Hello::decode(&frame), Err(FrameError::Version(Frame::Hello, 9)));
    }

    #[test]
    fn wrong_magic_path_flags_and_lengths_are_refused() {
        let good = hello(b"vm".to_vec()).encode().unwrap();
        let with = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[at] = value;
            Hello::decode(&frame)
        };
        assert_eq!(with(0, 0), Err(FrameError::Magic(Frame::Hello)));
        assert!(matches!(with(24, 8), Err(FrameError::Field { field: "path", .. })));
        assert!(matches!(with(25, 2), Err(FrameError::Field { field: "flags", .. })));
        assert_eq!(with(31, 3), Err(FrameError::Truncated(Frame::Hello)));
        assert_eq!(with(31, 1), Err(FrameError::Trailing(Frame::Hello, 1)));
        assert_eq!(with(7, 10), Err(FrameError::Trailing(Frame::Hello, 16)));
    }

    proptest! {
        #[test]
        fn round_trip(link: [u8; 16], path in 0u8..8, attempt: u32, rejoin: bool, label in prop::collection::vec(any::<u8>(), 0..=LABEL_MAX)) {
            let hello = Hello { link: LinkId(link), path: PathId::new(path).unwrap(), attempt, rejoin, label: label.into() };
            prop_assert_eq!(Hello::decode(&hello.encode().unwrap()), Ok(hello));
        }

        #[test]
        fn every_cut_is_refused(label in prop::collection::vec(any::<u8>(), 0..20), cut in 0usize..1000) {
            let frame = hello(label).encode().unwrap();
            let cut = cut % frame.len();
            prop_assert!(Hello::decode(&frame[..cut]).is_err());
        }

        #[test]
        fn welcome_round_trip(instance: u64) {
            let welcome = Welcome { instance };
            prop_assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        }

        #[test]
        fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Hello::decode(&bytes);
            let _ = Welcome::decode(&bytes);
        }
    }
}
