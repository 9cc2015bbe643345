//! An incremental parser of requests: RESP arrays of bulk strings, and inline commands as typed by a person.
//!
//! ```text
//!            '*N'                '$len'              len bytes, CRLF
//!   Start ─────────> BulkHeader ────────> BulkBody ──────────────────┐
//!     │ line               ^  └── N = 0: the command is complete     │
//!     └─> complete         └───────────────── N - 1 ─────────────────┘
//! ```
//!
//! What is accepted, and which error comes when, depends on the bytes alone and not on how they were cut up.

use crate::limits::{
    KEPT_BUFFER_BYTES, MAX_ARGS, MAX_COMMAND_BYTES, MAX_HEADER_LINE_BYTES, MAX_INLINE_BYTES, MAX_VALUE_BYTES,
};
use alloc::vec::Vec;
use core::ops::Range;

/// Why a byte stream cannot be read on. The connection must be closed: where the next command starts is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// `*N` with N not a number or beyond [`MAX_ARGS`].
    #[error("invalid multibulk length")]
    InvalidArrayLength,
    /// `$N` with N not a number, negative, or beyond [`MAX_VALUE_BYTES`].
    #[error("invalid bulk length")]
    InvalidBulkLength,
    /// Something other than `$` where an argument must start.
    #[error("expected '$' before an argument")]
    ExpectedBulk,
    /// A line or an argument not followed by CR LF.
    #[error("expected CRLF")]
    ExpectedCrlf,
    /// A `*N` or `$N` line without end.
    #[error("too big count string")]
    HeaderTooLong,
    /// An inline command without end.
    #[error("too big inline request")]
    InlineTooLong,
    /// A command of more than [`MAX_COMMAND_BYTES`].
    #[error("too big request")]
    CommandTooLong,
    /// No memory for the input of this connection.
    #[error("out of memory")]
    OutOfMemory,
}

/// A complete command: its arguments, the first of which is its name. Never empty.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    bytes: &'a [u8],
    args: &'a [Range<usize>],
}

impl<'a> Command<'a> {
    /// Number of arguments, the name included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a command is never empty")]
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// The argument at `index`, or nothing (an empty string) past the end.
    #[must_use]
    pub fn arg(&self, index: usize) -> &'a [u8] {
        self.args.get(index).map_or(&[], |range| &self.bytes[range.clone()])
    }

    /// The arguments from `index` on.
    pub fn args_from(&self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let (bytes, args) = (self.bytes, self.args.get(index..).unwrap_or(&[]));
        args.iter().map(move |range| &bytes[range.clone()])
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Start,
    BulkHeader { remaining: usize },
    BulkBody { remaining: usize, len: usize },
    Complete,
}

/// The input side of one connection. Holds at most [`MAX_COMMAND_BYTES`].
#[derive(Debug)]
pub struct Parser {
    buffer: Vec<u8>,
    /// Where the current command starts in `buffer`.
    start: usize,
    /// Bytes of the current command already parsed.
    parsed: usize,
    state: State,
    /// Arguments of the current command, relative to `start`.
    args: Vec<Range<usize>>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the start of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, parsed: 0, state: State::Start, args: Vec::new() }
    }

    /// Bytes that [`feed`](Self::feed) would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_COMMAND_BYTES - (self.buffer.len() - self.start)
    }

    /// Bytes held that belong to no complete command yet.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Takes as much of `bytes` as there is room for and returns how much that was. There is always room once
    /// [`next`](Self::next) has returned `Ok(None)`.
    ///
    /// # Errors
    /// [`ProtocolError::OutOfMemory`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, ProtocolError> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let taken = &bytes[..bytes.len().min(self.room())];
        self.buffer.try_reserve(taken.len()).map_err(|_| ProtocolError::OutOfMemory)?;
        self.buffer.extend_from_slice(taken);
        Ok(taken.len())
    }

    /// The next complete command, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// The stream cannot be read on; see [`ProtocolError`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the command borrows from the parser, an iterator's item cannot"
    )]
    pub fn next(&mut self) -> Result<Option<Command<'_>>, ProtocolError> {
        if matches!(self.state, State::Complete) {
            self.forget_command();
        }
        while !matches!(self.state, State::Complete) {
            let progressed = match self.state {
                State::Start => self.start_command()?,
                State::BulkHeader { remaining } => self.bulk_header(remaining)?,
                State::BulkBody { remaining, len } => self.bulk_body(remaining, len)?,
                State::Complete => unreachable!("the loop ends at a complete command"),
            };
            if !progressed {
                self.release_empty_buffer();
                return Ok(None);
            }
        }
        Ok(Some(Command { bytes: &self.buffer[self.start..], args: &self.args }))
    }

    fn forget_command(&mut self) {
        self.start += self.parsed;
        self.parsed = 0;
        self.args.clear();
        self.state = State::Start;
    }

    fn release_empty_buffer(&mut self) {
        if self.start == self.buffer.len() {
            self.start = 0;
            self.buffer.clear();
            self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        }
    }

    fn unparsed(&self) -> &[u8] {
        &self.buffer[self.start + self.parsed..]
    }

    /// Length of the next line without its end, once it is complete. `limit` counts the line end.
    fn line(&self, limit: usize, too_long: ProtocolError) -> Result<Option<usize>, ProtocolError> {
        let window = &self.unparsed()[..self.unparsed().len().min(limit)];
        match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => Ok(Some(end)),
            None if window.len() == limit => Err(too_long),
            None => Ok(None),
        }
    }

    /// The number of a `*N` or `$N` line, once complete, and how many bytes the line takes.
    fn header(&self, invalid: ProtocolError) -> Result<Option<(i64, usize)>, ProtocolError> {
        let Some(end) = self.line(MAX_HEADER_LINE_BYTES, ProtocolError::HeaderTooLong)? else {
            return Ok(None);
        };
        let Some(text) = self.unparsed()[1..=end.max(1)].strip_suffix(b"\r\n") else {
            return Err(ProtocolError::ExpectedCrlf);
        };
        let number = core::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(invalid)?;
        Ok(Some((number, end + 1)))
    }

    fn start_command(&mut self) -> Result<bool, ProtocolError> {
        match self.unparsed().first() {
            None => Ok(false),
            Some(b'*') => self.array_header(),
            Some(_) => self.inline(),
        }
    }

    fn array_header(&mut self) -> Result<bool, ProtocolError> {
        let Some((count, taken)) = self.header(ProtocolError::InvalidArrayLength)? else { return Ok(false) };
        self.parsed += taken;
        match usize::try_from(count) {
            Ok(0) | Err(_) => self.forget_command(),
            Ok(count) if count > MAX_ARGS => return Err(ProtocolError::InvalidArrayLength),
            Ok(remaining) => self.state = State::BulkHeader { remaining },
        }
        Ok(true)
    }

    fn bulk_header(&mut self, remaining: usize) -> Result<bool, ProtocolError> {
        match self.unparsed().first() {
            None => return Ok(false),
            Some(b'$') => {}
            Some(_) => return Err(ProtocolError::ExpectedBulk),
        }
        let Some((len, taken)) = self.header(ProtocolError::InvalidBulkLength)? else { return Ok(false) };
        let len = usize::try_from(len).map_err(|_| ProtocolError::InvalidBulkLength)?;
        if len > MAX_VALUE_BYTES {
            return Err(ProtocolError::InvalidBulkLength);
        }
        self.parsed += taken;
        // The headers still to come are counted at their longest, so that a command once begun always fits.
        let to_come = (remaining - 1) * (MAX_HEADER_LINE_BYTES + 2);
        if self.parsed + len + 2 + to_come > MAX_COMMAND_BYTES {
            return Err(ProtocolError::CommandTooLong);
        }
        self.state = State::BulkBody { remaining, len };
        Ok(true)
    }

    fn bulk_body(&mut self, remaining: usize, len: usize) -> Result<bool, ProtocolError> {
        if self.unparsed().len() < len + 2 {
            return Ok(false);
        }
        if self.unparsed()[len..len + 2] != *b"\r\n" {
            return Err(ProtocolError::ExpectedCrlf);
        }
        self.push_arg(self.parsed..self.parsed + len)?;
        self.parsed += len + 2;
        self.state = match remaining - 1 {
            0 => State::Complete,
            remaining => State::BulkHeader { remaining },
        };
        Ok(true)
    }

    fn inline(&mut self) -> Result<bool, ProtocolError> {
        let Some(end) = self.line(MAX_INLINE_BYTES, ProtocolError::InlineTooLong)? else { return Ok(false) };
        let line = self.start + self.parsed..self.start + self.parsed + end;
        let mut word_start = None;
        // One step past the line, so that a word at its very end is closed too.
        for at in line.start..=line.end {
            let blank = at == line.end || self.buffer[at].is_ascii_whitespace();
            match (blank, word_start) {
                (false, None) => word_start = Some(at),
                (true, Some(from)) => {
                    if self.args.len() == MAX_ARGS {
                        return Err(ProtocolError::InvalidArrayLength);
                    }
                    self.push_arg(from - self.start..at - self.start)?;
                    word_start = None;
                }
                _ => {}
            }
        }
        self.parsed += end + 1;
        if self.args.is_empty() {
            self.forget_command();
        } else {
            self.state = State::Complete;
        }
        Ok(true)
    }

    fn push_arg(&mut self, arg: Range<usize>) -> Result<(), ProtocolError> {
        self.args.try_reserve(1).map_err(|_| ProtocolError::OutOfMemory)?;
        self.args.push(arg);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{format, string::String, vec};

    /// Everything a stream parses to, fed in pieces that end at `cuts`.
    fn parse(stream: &[u8], cuts: &[usize]) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
        let mut parser = Parser::new();
        let mut commands = Vec::new();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            let mut piece = &stream[pair[0]..pair[1]];
            loop {
                let taken = parser.feed(piece).unwrap();
                piece = &piece[taken..];
                loop {
                    match parser.next() {
                        Ok(Some(command)) => {
                            commands.push(command.args_from(0).map(<[u8]>::to_vec).collect());
                        }
                        Ok(None) => break,
                        Err(error) => return (commands, Some(error)),
                    }
                }
                if piece.is_empty() {
                    break;
                }
                assert!(parser.room() > 0, "a parser that wants more must take more");
            }
        }
        (commands, None)
    }

    fn commands(stream: &str) -> Vec<Vec<String>> {
        let (commands, error) = parse(stream.as_bytes(), &[]);
        assert_eq!(error, None);
        let text = |word: Vec<u8>| String::from_utf8(word).unwrap();
        commands.into_iter().map(|command| command.into_iter().map(text).collect()).collect()
    }

    fn error(stream: &[u8]) -> ProtocolError {
        parse(stream, &[]).1.expect("the stream must be refused")
    }

    #[test]
    fn reads_arrays_and_inline_commands() {
        assert_eq!(commands("*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n"), [vec!["GET", "a"], vec!["PING"]]);
        assert_eq!(
            commands("*0\r\n*-1\r\n\r\n  SET  a \tb \nDEL c\r\n"),
            [vec!["SET", "a", "b"], vec!["DEL", "c"]]
        );
        assert_eq!(commands("*1\r\n$0\r\n\r\n"), [[""]]);
        assert_eq!(commands("*2\r\n$3\r\nGET\r\n"), Vec::<Vec<String>>::new());
    }

    #[test]
    fn refuses_what_it_cannot_follow() {
        assert_eq!(error(b"*x\r\n"), ProtocolError::InvalidArrayLength);
        assert_eq!(error(b"*1025\r\n"), ProtocolError::InvalidArrayLength);
        assert_eq!(error(b"*1\r\n$-1\r\n"), ProtocolError::InvalidBulkLength);
        assert_eq!(error(b"*1\r\n$65537\r\n"), ProtocolError::InvalidBulkLength);
        assert_eq!(error(b"*1\r\n+OK\r\n"), ProtocolError::ExpectedBulk);
        assert_eq!(error(b"*1\n"), ProtocolError::ExpectedCrlf);
        assert_eq!(error(b"*\n"), ProtocolError::ExpectedCrlf);
        assert_eq!(error(b"*1\r\n$1\r\nab\r\n"), ProtocolError::ExpectedCrlf);
        assert_eq!(error(&[b'*'; 40]), ProtocolError::HeaderTooLong);
        assert_eq!(error(&[b'a'; MAX_INLINE_BYTES]), ProtocolError::InlineTooLong);
        assert_eq!(
            error(format!("{}\n", "a ".repeat(MAX_ARGS + 1)).as_bytes()),
            ProtocolError::InvalidArrayLength
        );
    }

    #[test]
    fn the_largest_command_fits_and_one_more_byte_does_not() {
        let body = "x".repeat(MAX_VALUE_BYTES);
        let four = format!("*5\r\n{}", format!("${MAX_VALUE_BYTES}\r\n{body}\r\n").repeat(3));
        assert_eq!(commands(&format!("{four}$1\r\na\r\n$1\r\nb\r\n")).len(), 1);
        assert_eq!(error(format!("{four}${MAX_VALUE_BYTES}\r\n").as_bytes()), ProtocolError::CommandTooLong);
    }

    fn wire() -> impl Strategy<Value = Vec<u8>> {
        let word = proptest::collection::vec(any::<u8>(), 0..40);
        let array = proptest::collection::vec(word, 0..6).prop_map(|words| {
            let mut wire = format!("*{}\r\n", words.len()).into_bytes();
            for word in words {
                wire.extend(format!("${}\r\n", word.len()).bytes());
                wire.extend(word);
                wire.extend(b"\r\n");
            }
            wire
        });
        let token = prop_oneof![
            4 => array,
            2 => "[a-z ]{0,30}\r\n".prop_map(String::into_bytes),
            1 => "[*$][0-9-]{0,6}(\r\n)?".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..12),
        ];
        proptest::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn how_the_stream_is_cut_does_not_matter(stream in wire(), cuts in proptest::collection::vec(any::<usize>(), 0..20)) {
            prop_assert_eq!(parse(&stream, &cuts), parse(&stream, &[]));
            let every: Vec<usize> = (0..stream.len()).collect();
            prop_assert_eq!(parse(&stream, &every), parse(&stream, &[]));
        }

        #[test]
        fn memory_stays_bounded(stream in wire(), repeat in 1..200_usize) {
            let mut parser = Parser::new();
            for _ in 0..repeat {
                let mut rest = &stream[..];
                while !rest.is_empty() {
                    let Ok(taken) = parser.feed(rest) else { break };
                    rest = &rest[taken..];
                    prop_assert!(parser.buffer.len() <= MAX_COMMAND_BYTES);
                    prop_assert!(parser.args.len() <= MAX_ARGS);
                    let drained = loop {
                        match parser.next() {
                            Ok(Some(_)) => {}
                            Ok(None) => break true,
                            Err(_) => break false,
                        }
                    };
                    if !drained {
                        return Ok(());
                    }
                }
            }
        }
    }
}
