//! One connection as the guest knows it.
//!
//! ```text
//!   guest's REQUEST ──> FromGuest ──program reached──> Up ──guest's SHUTDOWN of both──> Ending ──all passed on──> RST
//!   host's CONNECT ──> FromHost ──guest's RESPONSE──> Up
//!   from anywhere: guest's RST, program gone, or a packet that does not belong there ──> no connection
//! ```

use super::credit::Credit;
use super::packet::{Header, NO_RECEIVE, NO_SEND, op};

/// The two ports by which packets name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: u32,
    pub(super) host: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    FromGuest,
    FromHost,
    Up,
    Ending,
}

/// What a packet of the guest's means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing beyond its credit.
    Nothing,
    /// The guest takes a connection that a program asked for.
    Accepted,
    /// The payload is for the program.
    Bytes,
    /// The guest will not send any more, or not receive, or neither.
    Ends { writes: bool, reads: bool },
    /// The guest is done: close when everything was passed on.
    Finished,
    /// The guest has given it up.
    Gone,
    /// It does not belong here: the connection cannot go on.
    Nonsense,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) credit: Credit,
    phase: Phase,
    /// REQUEST or RESPONSE that the guest has not got yet.
    opening: Option<u16>,
    /// The guest is to be told of our room.
    tell: bool,
    /// Directions whose end the guest has not been told of yet.
    ends: u32,
    /// Directions that the guest has ended.
    ended: u32,
    /// The guest was asked for credit and has given none.
    asked: bool,
    /// In the list of those that have something to say.
    pub(super) queued: bool,
}

impl Connection {
    fn new(key: Key, phase: Phase, opening: Option<u16>) -> Connection {
        let credit = Credit::default();
        Connection {
            key,
            credit,
            phase,
            opening,
            tell: false,
            ends: 0,
            ended: 0,
            asked: false,
            queued: false,
        }
    }

    /// The guest asked for it.
    pub(super) fn from_guest(key: Key, request: &Header) -> Connection {
        let mut connection = Connection::new(key, Phase::FromGuest, None);
        connection.credit.hear(request);
        connection
    }

    /// A program asked for it.
    pub(super) fn from_host(key: Key) -> Connection {
        Connection::new(key, Phase::FromHost, Some(op::REQUEST))
    }

    /// Whether the guest has never heard of it.
    pub(super) fn is_unheard(&self) -> bool {
        self.opening == Some(op::REQUEST)
    }

    /// Whether bytes may go to the guest.
    pub(super) fn is_receiving(&self) -> bool {
        self.phase == Phase::Up && self.ended & NO_RECEIVE == 0
    }

    /// The program that the guest asked for has been reached.
    pub(super) fn reached(&mut self) {
        (self.phase, self.opening) = (Phase::Up, Some(op::RESPONSE));
    }

    /// The program has ended these directions, flags as the packet has them.
    pub(super) fn program_ended(&mut self, directions: u32) {
        self.ends |= directions;
    }

    /// `bytes` of the guest's have reached the program.
    pub(super) fn passed(&mut self, bytes: u32) {
        self.credit.forward(bytes);
        self.tell |= self.phase == Phase::Up && self.credit.should_tell();
    }

    /// Takes a packet.
    pub(super) fn hear(&mut self, header: &Header) -> Heard {
        self.credit.hear(header);
        self.asked &= self.credit.available() == 0;
        match (header.op, self.phase) {
            (op::RST, _) => Heard::Gone,
            (op::RESPONSE, Phase::FromHost) if self.opening.is_none() => {
                self.phase = Phase::Up;
                Heard::Accepted
            }
            (op::RW, Phase::Up) if self.ended & NO_SEND == 0 && self.credit.receive(header.length) => {
                Heard::Bytes
            }
            (op::SHUTDOWN, Phase::Up) => self.end(header.flags),
            (op::SHUTDOWN | op::CREDIT_UPDATE | op::CREDIT_REQUEST, Phase::Ending) => Heard::Nothing,
            (op::CREDIT_UPDATE, Phase::Up) => Heard::Nothing,
            (op::CREDIT_REQUEST, Phase::Up) => {
                self.tell = true;
                Heard::Nothing
            }
            _ => Heard::Nonsense,
        }
    }

    fn end(&mut self, flags: u32) -> Heard {
        let news = flags & (NO_RECEIVE | NO_SEND) & !self.ended;
        self.ended |= news;
        if self.ended == NO_RECEIVE | NO_SEND {
            self.phase = Phase::Ending;
            return Heard::Finished;
        }
        Heard::Ends { writes: news & NO_SEND != 0, reads: news & NO_RECEIVE != 0 }
    }

    /// The next word that is not data: operation and flags.
    pub(super) fn next_word(&mut self) -> Option<(u16, u32)> {
        if let Some(op) = self.opening.take() {
            return Some((op, 0));
        }
        if self.phase == Phase::Ending {
            return None;
        }
        if std::mem::take(&mut self.tell) {
            return Some((op::CREDIT_UPDATE, 0));
        }
        let flags = std::mem::take(&mut self.ends);
        (flags != 0).then_some((op::SHUTDOWN, flags))
    }

    /// There is data but no credit: what to say, if it has not been said.
    pub(super) fn ask(&mut self) -> Option<(u16, u32)> {
        (!std::mem::replace(&mut self.asked, true)).then_some((op::CREDIT_REQUEST, 0))
    }
}
