//! Replies on their way out: a bounded buffer of RESP2.

use crate::limits::{KEPT_BUFFER_BYTES, MAX_REPLY_BYTES};
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// The unsent replies of one connection.
///
/// Writing never fails in the writer's face: where memory runs out or a reply passes [`MAX_REPLY_BYTES`], the
/// buffer turns [`broken`](Self::is_broken) and the connection must be dropped, since part of a reply is missing.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    sent: usize,
    broken: bool,
}

impl Replies {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), sent: 0, broken: false }
    }

    /// What is still to be sent.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Marks `count` bytes of [`unsent`](Self::unsent) as sent.
    ///
    /// # Panics
    /// If `count` is more than there is to send.
    pub fn mark_sent(&mut self, count: usize) {
        assert!(count <= self.unsent().len(), "{count} bytes sent of {}", self.unsent().len());
        self.sent += count;
        if self.sent == self.bytes.len() {
            self.sent = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BUFFER_BYTES);
        } else if self.sent >= KEPT_BUFFER_BYTES {
            // A peer that reads slowly but steadily never empties the buffer: without this it would grow for ever.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Whether a reply could not be written completely.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        if self.unsent().len() + bytes.len() > 2 * MAX_REPLY_BYTES
            || self.bytes.try_reserve(bytes.len()).is_err()
        {
            self.broken = true;
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// A status such as `OK`.
    pub fn simple(&mut self, text: &str) {
        self.put(b"+");
        self.put(text.as_bytes());
        self.put(b"\r\n");
    }

    /// An error; `message` starts with its code, such as `ERR`. Line ends in it become blanks.
    pub fn error(&mut self, message: fmt::Arguments<'_>) {
        self.put(b"-");
        let _ = write!(OneLine(self), "{message}");
        self.put(b"\r\n");
    }

    /// An integer.
    pub fn integer(&mut self, value: i64) {
        let _ = write!(Verbatim(self), ":{value}\r\n");
    }

    /// A count, which must fit the protocol's signed integers.
    pub fn count(&mut self, value: u64) {
        self.integer(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// A string of bytes.
    pub fn bulk(&mut self, bytes: &[u8]) {
        let _ = write!(Verbatim(self), "${}\r\n", bytes.len());
        self.put(bytes);
        self.put(b"\r\n");
    }

    /// The absence of a value.
    pub fn null(&mut self) {
        self.put(b"$-1\r\n");
    }

    /// The head of an array: `len` replies must follow.
    pub fn array(&mut self, len: usize) {
        let _ = write!(Verbatim(self), "*{len}\r\n");
    }
}

/// Adapts `write!` to the buffer.
struct Verbatim<'a>(&'a mut Replies);

impl Write for Verbatim<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.put(text.as_bytes());
        Ok(())
    }
}

/// As [`Verbatim`], but keeps the text on one line, as errors must be.
struct OneLine<'a>(&'a mut Replies);

impl Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(['\r', '\n']) {
            match piece.strip_suffix(['\r', '\n']) {
                Some(line) => {
                    self.0.put(line.as_bytes());
                    self.0.put(b" ");
                }
                None => self.0.put(piece.as_bytes()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn writes_each_kind() {
        let mut replies = Replies::new();
        replies.simple("OK");
        replies.integer(-7);
        replies.bulk(b"a\0b");
        replies.null();
        replies.array(2);
        replies.error(format_args!("ERR {}", "two\r\nlines"));
        assert_eq!(replies.unsent(), b"+OK\r\n:-7\r\n$3\r\na\0b\r\n$-1\r\n*2\r\n-ERR two  lines\r\n");
        replies.mark_sent(5);
        assert!(replies.unsent().starts_with(b":-7"));
        replies.mark_sent(replies.unsent().len());
        assert!(replies.unsent().is_empty());
    }

    #[test]
    fn breaks_rather_than_grow() {
        let mut replies = Replies::new();
        let part = vec![0; MAX_REPLY_BYTES];
        while !replies.is_broken() {
            replies.bulk(&part);
        }
        assert!(replies.unsent().len() <= 2 * MAX_REPLY_BYTES);
    }
}
