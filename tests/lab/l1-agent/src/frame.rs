//! Framing of the control channel: `header length (u32 LE), blob length (u32 LE), JSON header, raw blob`.
//!
//! File contents and process output ride in the blob, so JSON never has to spell out bytes.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{BLOB_BYTES_MAX, HEADER_BYTES_MAX};

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other end is gone: its host died, or its process ended.
    #[error("control channel closed")]
    Closed,
    /// The channel itself failed.
    #[error("control channel failed")]
    Io(#[source] io::Error),
    /// A part is longer than both ends agreed on; nothing after it can be trusted.
    #[error("{part} of {bytes} bytes exceeds the limit of {limit}; split it into several frames")]
    TooLong {
        /// Which part of the frame.
        part: &'static str,
        /// Its announced length.
        bytes: u64,
        /// The limit it broke.
        limit: u32,
    },
    /// The header is not what this version speaks.
    #[error("malformed header; the agent and the tests must be built from the same tree")]
    Malformed(#[source] serde_json::Error),
}

/// Writes one frame and flushes it.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is written; [`FrameError::Io`] when the channel fails.
pub fn write_frame<H: Serialize>(to: &mut impl Write, header: &H, blob: &[u8]) -> Result<(), FrameError> {
    let header = serde_json::to_vec(header).map_err(FrameError::Malformed)?;
    let header_len = checked_len("header", header.len(), HEADER_BYTES_MAX)?;
    let blob_len = checked_len("blob", blob.len(), BLOB_BYTES_MAX)?;
    let mut lengths = [0_u8; 8];
    lengths[..4].copy_from_slice(&header_len.to_le_bytes());
    lengths[4..].copy_from_slice(&blob_len.to_le_bytes());
    [&lengths, header.as_slice(), blob]
        .into_iter()
        .try_for_each(|part| to.write_all(part))
        .map_err(from_io)?;
    to.flush().map_err(from_io)
}

/// Reads one frame: its header and its blob.
///
/// # Errors
/// [`FrameError::Closed`] at the end of the stream, the other variants for a broken channel or peer.
pub fn read_frame<H: DeserializeOwned>(from: &mut impl Read) -> Result<(H, Vec<u8>), FrameError> {
    let header_len = read_length(from, "header", HEADER_BYTES_MAX)?;
    let blob_len = read_length(from, "blob", BLOB_BYTES_MAX)?;
    let header = read_part(from, header_len)?;
    let blob = read_part(from, blob_len)?;
    Ok((serde_json::from_slice(&header).map_err(FrameError::Malformed)?, blob))
}

fn checked_len(part: &'static str, bytes: usize, limit: u32) -> Result<u32, FrameError> {
    let too_long = FrameError::TooLong { part, bytes: bytes as u64, limit };
    u32::try_from(bytes).ok().filter(|len| *len <= limit).ok_or(too_long)
}

fn read_length(from: &mut impl Read, part: &'static str, limit: u32) -> Result<u32, FrameError> {
    let mut raw = [0_u8; 4];
    from.read_exact(&mut raw).map_err(from_io)?;
    let len = u32::from_le_bytes(raw);
    if len > limit {
        return Err(FrameError::TooLong { part, bytes: u64::from(len), limit });
    }
    Ok(len)
}

fn read_part(from: &mut impl Read, len: u32) -> Result<Vec<u8>, FrameError> {
    let mut part = vec![0_u8; len as usize];
    from.read_exact(&mut part).map_err(from_io)?;
    Ok(part)
}

fn from_io(error: io::Error) -> FrameError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            FrameError::Closed
        }
        _ => FrameError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_survive_the_trip(headers in prop::collection::vec(".{0,40}", 0..5), blob in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut wire = Vec::new();
            write_frame(&mut wire, &headers, &blob).unwrap();
            let (back, back_blob): (Vec<String>, Vec<u8>) = read_frame(&mut wire.as_slice()).unwrap();
            prop_assert_eq!((back, back_blob), (headers, blob));
        }

        #[test]
        fn arbitrary_bytes_never_panic(wire in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_frame::<Vec<String>>(&mut wire.as_slice());
        }

        #[test]
        fn truncation_reads_as_closed(cut in 0_usize..20) {
            let mut wire = Vec::new();
            write_frame(&mut wire, &"header", b"twelve bytes").unwrap();
            wire.truncate(cut);
            prop_assert!(matches!(read_frame::<String>(&mut wire.as_slice()), Err(FrameError::Closed)));
        }
    }

    #[test]
    fn an_oversized_blob_is_refused_by_both_ends() {
        let blob = vec![0; BLOB_BYTES_MAX as usize + 1];
        let mut wire = Vec::new();
        assert!(matches!(write_frame(&mut wire, &(), &blob), Err(FrameError::TooLong { part: "blob", .. })));
        assert!(wire.is_empty());
        let forged = [2, 0, 0, 0, 255, 255, 255, 255, b'{', b'}'];
        assert!(matches!(read_frame::<()>(&mut forged.as_slice()), Err(FrameError::TooLong { .. })));
    }
}
