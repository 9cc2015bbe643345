//! Reading fields from bytes that may be anything.

use bytes::{Buf, Bytes};

/// A frame that cannot be read. The sender is at fault, or the path damaged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends too early.
    #[error("the frame ends inside its {what}")]
    Truncated {
        /// The field.
        what: &'static str,
    },
    /// A length or count beyond its bound.
    #[error("the frame's {what} is {got} long, more than the {max} allowed")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Its claimed length.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// A value that means nothing.
    #[error("the frame's {what} cannot be {got}")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value.
        got: u64,
    },
    /// Text that is not what it should be.
    #[error("the frame's {what} is not valid text")]
    Text {
        /// The field.
        what: &'static str,
    },
    /// Another protocol version.
    #[error("the frame has version {got}, this side speaks {want}: run the same release on both nodes")]
    Version {
        /// Theirs.
        got: u8,
        /// Ours.
        want: u8,
    },
    /// Bytes after the end.
    #[error("{0} bytes follow the end of the frame")]
    Trailing(usize),
}

/// Reads fields in order; byte strings are slices of the frame, not copies.
#[derive(Debug)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Starts at the beginning of a frame.
    #[must_use]
    pub fn new(frame: &Bytes) -> Self {
        Self { rest: frame.clone() }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// `n` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn take(&mut self, what: &'static str, n: usize) -> Result<Bytes, DecodeError> {
        if self.rest.len() < n {
            return Err(DecodeError::Truncated { what });
        }
        Ok(self.rest.split_to(n))
    }

    /// An array of `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        self.take(what, N)?.copy_to_slice(&mut out);
        Ok(out)
    }

    /// A byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    /// A 32-bit number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A 64-bit number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A flag byte and a 64-bit number.
    ///
    /// # Errors
    /// [`DecodeError`] when the flag is neither 0 nor 1.
    pub fn option_u64(&mut self, what: &'static str) -> Result<Option<u64>, DecodeError> {
        let (flag, value) = (self.u8(what)?, self.u64(what)?);
        match flag {
            0 => Ok(None),
            1 => Ok(Some(value)),
            other => Err(DecodeError::Value { what, got: u64::from(other) }),
        }
    }

    /// A count of things that follow, each at least one byte long.
    ///
    /// # Errors
    /// [`DecodeError`] when it is over `max` or over what the frame can hold.
    pub fn count(&mut self, what: &'static str, max: usize) -> Result<usize, DecodeError> {
        let got = self.u32(what)? as usize;
        if got > max {
            return Err(DecodeError::TooLong { what, got, max });
        }
        if got > self.rest.len() {
            return Err(DecodeError::Truncated { what });
        }
        Ok(got)
    }

    /// A byte string of at most `max` bytes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn bytes(&mut self, what: &'static str, max: usize) -> Result<Bytes, DecodeError> {
        let n = self.count(what, max)?;
        self.take(what, n)
    }

    /// A UTF-8 string of at most `max` bytes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn text(&mut self, what: &'static str, max: usize) -> Result<String, DecodeError> {
        let bytes = self.bytes(what, max)?;
        String::from_utf8(bytes.into()).map_err(|_| DecodeError::Text { what })
    }

    /// Ends the frame.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] when something is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(DecodeError::Trailing(n)),
        }
    }
}
