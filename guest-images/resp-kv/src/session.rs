//! One connection: bytes in, replies out, with back-pressure both ways.

use crate::engine::Engine;
use crate::host::Host;
use crate::limits::OUTPUT_HIGH_WATER_BYTES;
use crate::resp::{Parser, Replies};

/// The state of one client connection.
///
/// Per turn: [`feed`](Self::feed) what arrived, [`advance`](Self::advance), send some of
/// [`output`](Self::output), and report it with [`mark_sent`](Self::mark_sent). While the peer does not read, the
/// session stops executing, then stops taking input, so that the transport's own window closes.
#[derive(Debug, Default)]
pub struct Session {
    parser: Parser,
    replies: Replies,
    closing: bool,
}

impl Session {
    /// A session at the start of its stream.
    #[must_use]
    pub const fn new() -> Self {
        Self { parser: Parser::new(), replies: Replies::new(), closing: false }
    }

    /// Takes as much of `bytes` as there is room for; the number taken. What was not taken must be fed again later.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        if self.closing {
            // The peer talks on after QUIT or after its error: heard, not kept.
            return bytes.len();
        }
        self.parser.feed(bytes).unwrap_or_else(|error| {
            self.replies.error(format_args!("ERR Protocol error: {error}"));
            self.closing = true;
            bytes.len()
        })
    }

    /// Executes complete commands until none is left or enough output waits. Whether it executed any.
    pub fn advance<H: Host>(&mut self, engine: &mut Engine<H>) -> bool {
        let mut executed = false;
        while !self.closing && self.replies.unsent().len() < OUTPUT_HIGH_WATER_BYTES {
            match self.parser.next() {
                Ok(Some(command)) => {
                    self.closing = engine.execute(&command, &mut self.replies).is_break();
                    executed = true;
                }
                Ok(None) => break,
                Err(error) => {
                    self.replies.error(format_args!("ERR Protocol error: {error}"));
                    self.closing = true;
                }
            }
        }
        executed
    }

    /// Replies waiting to be sent.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.replies.unsent()
    }

    /// Reports that the first `count` bytes of [`output`](Self::output) were sent.
    pub fn mark_sent(&mut self, count: usize) {
        self.replies.mark_sent(count);
    }

    /// Whether the connection is to be closed: after QUIT or a protocol error once all is sent, or at once if
    /// replies could not be kept.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.replies.is_broken() || (self.closing && self.replies.unsent().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::NoHost;
    use crate::limits::{MAX_REPLY_BYTES, MAX_VALUE_BYTES};
    use proptest::prelude::*;
    use std::{format, string::String, vec::Vec};

    /// Everything a fresh server answers to a stream that arrives in pieces of the given sizes, read `read` bytes a
    /// turn.
    fn answers(stream: &[u8], pieces: &[usize], read: usize) -> Vec<u8> {
        let mut engine = Engine::new(NoHost, 1 << 20);
        let mut session = Session::new();
        let mut answers = Vec::new();
        let (mut rest, mut sizes) = (stream, pieces.iter().cycle());
        loop {
            let piece = (*sizes.next().unwrap()).clamp(1, rest.len().max(1)).min(rest.len());
            let taken = session.feed(&rest[..piece]);
            rest = &rest[taken..];
            let executed = session.advance(&mut engine);
            let sent = session.output().len().min(read);
            answers.extend_from_slice(&session.output()[..sent]);
            session.mark_sent(sent);
            if session.is_finished() || (taken == 0 && sent == 0 && !executed && rest.is_empty()) {
                return answers;
            }
        }
    }

    #[test]
    fn quit_answers_and_ends() {
        assert_eq!(answers(b"PING\r\nQUIT\r\nPING\r\n", &[100], 100), b"+PONG\r\n+OK\r\n");
    }

    #[test]
    fn a_protocol_error_answers_and_ends() {
        let answers = answers(b"PING\r\n*x\r\nPING\r\n", &[100], 100);
        assert_eq!(answers, b"+PONG\r\n-ERR Protocol error: invalid multibulk length\r\n");
    }

    #[test]
    fn a_peer_that_does_not_read_stops_the_session() {
        let mut engine = Engine::new(NoHost, 1 << 20);
        let mut session = Session::new();
        session.feed(format!("SET k {}\r\n", "v".repeat(4000)).as_bytes());
        session.advance(&mut engine);
        let flood = b"GET k\r\n".repeat(1000);
        for _ in 0..200 {
            let _ = session.feed(&flood);
            session.advance(&mut engine);
        }
        assert_eq!(session.feed(&flood), 0);
        assert!(session.output().len() < OUTPUT_HIGH_WATER_BYTES + MAX_REPLY_BYTES);
    }

    #[test]
    fn a_reply_beyond_the_limit_is_an_error_reply() {
        let mut stream = format!(
            "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${MAX_VALUE_BYTES}\r\n{}\r\n",
            "v".repeat(MAX_VALUE_BYTES)
        );
        stream += &format!("MGET {}\r\nPING\r\n", "k ".repeat(20));
        let answers = String::from_utf8(answers(stream.as_bytes(), &[5000], 1 << 20)).unwrap();
        assert!(answers.starts_with("+OK\r\n-ERR"), "{answers:.60}");
        assert!(answers.ends_with("+PONG\r\n"));
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let line = "(SET|GET|INCR|DEL|MSET|MGET|EXISTS|ECHO|DIGEST|INFO|COMMAND|CLIENT|CONFIG GET|SELECT|FLUSHALL|NOPE)( [a-c0-9]{1,3}){0,4}\r\n";
        let line = line.prop_map(String::into_bytes);
        let noise = proptest::collection::vec(any::<u8>(), 0..20);
        let piece = prop_oneof![12 => line, 1 => noise];
        proptest::collection::vec(piece, 0..40).prop_map(|lines| lines.concat())
    }

    proptest! {
        #[test]
        fn replies_do_not_depend_on_how_the_stream_is_cut(
            stream in stream(), pieces in proptest::collection::vec(1..50_usize, 1..9), read in 1..3000_usize
        ) {
            prop_assert_eq!(answers(&stream, &pieces, read), answers(&stream, &[usize::MAX], usize::MAX));
        }
    }
}
