//! One connection: what its sides owe each other.

use super::device::DATA_BYTES;
use super::packet::{Kind, Packet};
use alloc::vec::Vec;
use resp_kv::Session;

/// Bytes the host may send ahead.
const ROOM_BYTES: u32 = 64 << 10;

/// Flags of a shutdown: neither receiving nor sending any more.
const BOTH: u32 = 3;

/// What a connection is for.
pub(super) enum Purpose {
    Echo,
    Resp(alloc::boxed::Box<Session>),
    /// The guest's own: a line is sent, and expected back.
    Ask,
}

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Connecting,
    Open,
    /// Nothing more comes; it ends when everything is sent.
    Ending,
    Closed,
}

/// A connection.
pub(super) struct Stream {
    pub(super) own_port: u32,
    pub(super) peer_port: u32,
    pub(super) purpose: Purpose,
    pub(super) state: State,
    /// Taken in and not yet made use of.
    pub(super) input: Vec<u8>,
    /// To be sent.
    pub(super) output: Vec<u8>,
    /// A packet without data that is owed.
    pub(super) owed: Option<Kind>,
    peer_room: u32,
    peer_passed_on: u32,
    sent: u32,
    passed_on: u32,
    told_passed_on: u32,
}

impl Stream {
    pub(super) fn new(own_port: u32, peer_port: u32, purpose: Purpose, first: Kind) -> Self {
        Self {
            own_port,
            peer_port,
            purpose,
            state: if first == Kind::Request { State::Connecting } else { State::Open },
            input: Vec::new(),
            output: Vec::new(),
            owed: Some(first),
            peer_room: 0,
            peer_passed_on: 0,
            sent: 0,
            passed_on: 0,
            told_passed_on: 0,
        }
    }

    /// Takes a packet in.
    pub(super) fn take(&mut self, packet: Packet, data: &[u8]) {
        (self.peer_room, self.peer_passed_on) = (packet.room, packet.passed_on);
        match packet.kind {
            Kind::Response if self.state == State::Connecting => self.state = State::Open,
            Kind::Data => {
                self.input.extend_from_slice(data);
                let count = u32::try_from(data.len()).unwrap_or(0);
                self.passed_on = self.passed_on.wrapping_add(count);
            }
            Kind::CreditRequest => self.owed = Some(Kind::CreditUpdate),
            // Linux ends a connection when its peer ceases to send, and so does this guest once it has answered.
            Kind::Shutdown if packet.flags != 0 && self.state != State::Closed => self.state = State::Ending,
            Kind::Reset => self.state = State::Closed,
            _ => {}
        }
    }

    /// The next packet to send, with its data, of which there are `take` bytes of the output.
    pub(super) fn next_packet(&mut self) -> Option<(Packet, usize)> {
        if self.state == State::Closed {
            return None;
        }
        if let Some(kind) = self.owed.take() {
            return Some((self.packet(kind), 0));
        }
        let free = self.peer_room.saturating_sub(self.sent.wrapping_sub(self.peer_passed_on));
        let take = self.output.len().min(DATA_BYTES).min(usize::try_from(free).unwrap_or(0));
        if take > 0 && self.state != State::Connecting {
            self.sent = self.sent.wrapping_add(u32::try_from(take).unwrap_or(0));
            return Some((self.packet(Kind::Data), take));
        }
        if self.state == State::Ending && self.output.is_empty() {
            self.state = State::Closed;
            return Some((self.packet(Kind::Reset), 0));
        }
        // Before the host runs out of what it was told.
        let untold = self.passed_on.wrapping_sub(self.told_passed_on);
        (untold >= ROOM_BYTES / 2).then(|| (self.packet(Kind::CreditUpdate), 0))
    }

    fn packet(&mut self, kind: Kind) -> Packet {
        self.told_passed_on = self.passed_on;
        Packet {
            kind,
            own_port: self.own_port,
            peer_port: self.peer_port,
            flags: if kind == Kind::Shutdown { BOTH } else { 0 },
            room: ROOM_BYTES,
            passed_on: self.passed_on,
        }
    }
}
