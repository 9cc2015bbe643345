//! Headers of packets.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Bytes of a header (virtio 1.2, 5.10.6).
pub(super) const HEADER_BYTES: usize = 44;

/// Context id of the host.
pub(super) const HOST: u64 = 2;

const STREAM: u16 = 1;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

const KINDS: [Kind; 7] = [
    Kind::Request,
    Kind::Response,
    Kind::Reset,
    Kind::Shutdown,
    Kind::Data,
    Kind::CreditUpdate,
    Kind::CreditRequest,
];

/// A packet's header, seen from this guest whichever way it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) kind: Kind,
    pub(super) own_port: u32,
    pub(super) peer_port: u32,
    /// Of a shutdown: bit 0, no more receiving; bit 1, no more sending.
    pub(super) flags: u32,
    /// Of its sender: bytes it has room for in all, and bytes it has passed on.
    pub(super) room: u32,
    pub(super) passed_on: u32,
}

impl Packet {
    /// The bytes on the wire, from the guest with context id `cid`.
    pub(super) fn encode(&self, cid: u64, data: &[u8]) -> Box<[u8]> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + data.len());
        bytes.extend_from_slice(&cid.to_le_bytes());
        bytes.extend_from_slice(&HOST.to_le_bytes());
        bytes.extend_from_slice(&self.own_port.to_le_bytes());
        bytes.extend_from_slice(&self.peer_port.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&STREAM.to_le_bytes());
        bytes.extend_from_slice(&(self.kind as u16).to_le_bytes());
        bytes.extend_from_slice(&self.flags.to_le_bytes());
        bytes.extend_from_slice(&self.room.to_le_bytes());
        bytes.extend_from_slice(&self.passed_on.to_le_bytes());
        bytes.extend_from_slice(data);
        bytes.into_boxed_slice()
    }

    /// A packet from the host and its data; `None` if it is none for a stream.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, data) = bytes.split_at_checked(HEADER_BYTES)?;
        let word = |at: usize| header[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let [type_low, type_high, kind_low, kind_high] = word(28).to_le_bytes();
        let number = u16::from_le_bytes([kind_low, kind_high]);
        let kind = *KINDS.iter().find(|kind| **kind as u16 == number)?;
        let length = usize::try_from(word(24)).ok()?;
        let packet = Self {
            kind,
            peer_port: word(16),
            own_port: word(20),
            flags: word(32),
            room: word(36),
            passed_on: word(40),
        };
        (u16::from_le_bytes([type_low, type_high]) == STREAM).then_some((packet, data.get(..length)?))
    }
}
