//! Questions and answers as JSON, one a stream.

use mycelium_ram_core::VmId;
use mycelium_ram_core::settle::{Reply, Request};
use serde::{Deserialize, Serialize};

use crate::limits;

/// What a node asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// About which VM.
    pub vm: VmId,
    /// What.
    pub ask: Request,
}

/// What the arbiter says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The outcome.
    Reply(Reply),
    /// The question could not be dealt with; nothing is decided.
    Trouble(String),
}

/// A frame that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Longer than any honest frame.
    #[error("a frame of {0} bytes is over the bound of {max}", max = limits::FRAME_BYTES)]
    TooLong(usize),
    /// Not the JSON expected.
    #[error("not a valid frame: {0}")]
    Json(#[from] serde_json::Error),
}

/// Encodes a question or answer.
///
/// # Errors
/// [`WireError::TooLong`] when it would not be read at the other end.
pub fn encode<T: Serialize>(frame: &T) -> Result<Vec<u8>, WireError> {
    let bytes = serde_json::to_vec(frame)?;
    if bytes.len() > limits::FRAME_BYTES { Err(WireError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Decodes a question or answer.
///
/// # Errors
/// [`WireError`].
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, WireError> {
    if bytes.len() > limits::FRAME_BYTES {
        return Err(WireError::TooLong(bytes.len()));
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Entry point for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn fuzz_wire(data: &[u8]) {
    let _ = decode::<Question>(data);
    let _ = decode::<Answer>(data);
}
