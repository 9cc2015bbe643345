//! The header before each frame: what a frame leaves to be done by whoever takes it.
//!
//! Every frame at a door of the machine is a *packet*: 12 bytes of `struct virtio_net_hdr_v1` and the Ethernet frame. The header
//! is all zero for a frame that needs nothing more. Its last field, the number of receive buffers, is zero at every door.

use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, LARGE_FRAME_BYTES_MAX};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 12;
/// Longest packet.
pub(crate) const PACKET_BYTES_MAX: usize = HEADER_BYTES + LARGE_FRAME_BYTES_MAX;
/// Offset of `num_buffers`, which only the guest sees.
pub(super) const NUM_BUFFERS: usize = 10;

const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM.to_le_bytes()[0];
const CHECKSUM_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID.to_le_bytes()[0];
const WHOLE: u8 = VIRTIO_NET_HDR_GSO_NONE.to_le_bytes()[0];
const TCP4: u8 = VIRTIO_NET_HDR_GSO_TCPV4.to_le_bytes()[0];
const TCP6: u8 = VIRTIO_NET_HDR_GSO_TCPV6.to_le_bytes()[0];
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN.to_le_bytes()[0];

const _: () = assert!(
    PACKET_BYTES_MAX <= mycelium_ram_core::limits::FRAME_BYTES,
    "a replica must be able to repeat every packet"
);

/// What frames of one direction may leave to be done. Nothing of it goes without checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offloads {
    /// The checksum.
    pub(crate) checksum: bool,
    /// Cutting a large TCP segment to size, over IPv4.
    pub(crate) tso4: bool,
    /// The same over IPv6.
    pub(crate) tso6: bool,
    /// The same for segments with the flag for a reduced congestion window.
    pub(crate) ecn: bool,
}

impl Offloads {
    /// By what the driver has: checksum, over IPv4, over IPv6, ECN. Features without those they build on count for nothing.
    pub(crate) fn of([checksum, tso4, tso6, ecn]: [bool; 4]) -> Offloads {
        let (tso4, tso6) = (checksum && tso4, checksum && tso6);
        Offloads { checksum, tso4, tso6, ecn: ecn && (tso4 || tso6) }
    }

    fn allow(self, segmentation: u8) -> bool {
        let kind = match segmentation & !ECN {
            TCP4 => self.tso4,
            TCP6 => self.tso6,
            _ => false,
        };
        kind && (segmentation & ECN == 0 || self.ecn)
    }
}

/// The fields of a header that mean something here.
struct Header {
    flags: u8,
    segmentation: u8,
    header_bytes: usize,
    segment_bytes: usize,
    checksum_from: usize,
    checksum_at: usize,
}

impl Header {
    fn of(bytes: [u8; HEADER_BYTES]) -> Header {
        let [flags, segmentation, rest @ ..] = bytes;
        let field = |at: usize| usize::from(u16::from_le_bytes([rest[at], rest[at + 1]]));
        Header {
            flags,
            segmentation,
            header_bytes: field(0),
            segment_bytes: field(2),
            checksum_from: field(4),
            checksum_at: field(6),
        }
    }

    fn segments(&self) -> bool {
        self.segmentation != WHOLE
    }

    fn wants_checksum(&self) -> bool {
        self.flags & NEEDS_CHECKSUM != 0
    }

    /// Whether it fits a frame of that many bytes, and asks for nothing but what `allowed` allows.
    fn makes_sense(&self, frame_bytes: usize, allowed: Offloads) -> bool {
        let bytes_max = if self.segments() { LARGE_FRAME_BYTES_MAX } else { FRAME_BYTES_MAX };
        let length = (FRAME_BYTES_MIN..=bytes_max).contains(&frame_bytes);
        let checksum = allowed.checksum && self.checksum_from + self.checksum_at + 2 <= frame_bytes;
        let segments =
            allowed.allow(self.segmentation) && self.segment_bytes > 0 && self.header_bytes <= frame_bytes;
        length && (checksum || !self.wants_checksum()) && (segments || !self.segments())
    }
}

/// What a frame that has been let through leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing, or its checksum.
    Little,
    /// Cutting to size.
    Segments,
}

/// Leaves of the header what concerns a frame that asks for no more than `allowed`. `None`: it asks for more, or for what
/// cannot be, and is no frame to be passed on.
pub(super) fn narrow(packet: &mut [u8], allowed: Offloads) -> Option<Work> {
    let (bytes, frame) = packet.split_first_chunk_mut::<HEADER_BYTES>()?;
    let header = Header::of(*bytes);
    if !header.makes_sense(frame.len(), allowed) {
        return None;
    }
    let valid = if allowed.checksum { CHECKSUM_VALID } else { 0 };
    bytes[0] = header.flags & (NEEDS_CHECKSUM | valid);
    if !header.segments() {
        bytes[2..6].fill(0);
    }
    if !header.wants_checksum() {
        bytes[6..10].fill(0);
    }
    bytes[NUM_BUFFERS..].fill(0);
    Some(if header.segments() { Work::Segments } else { Work::Little })
}

/// The Ethernet frame in a packet; empty if it has none.
#[must_use]
pub fn frame_of(packet: &[u8]) -> &[u8] {
    packet.get(HEADER_BYTES..).unwrap_or_default()
}

/// A packet of a frame that leaves nothing to be done.
#[must_use]
pub fn packet_of(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES], frame].concat()
}

/// Whether the header asks for nothing: such a frame may pass where no header can.
pub(super) fn is_plain(packet: &[u8]) -> bool {
    packet
        .first_chunk::<HEADER_BYTES>()
        .is_some_and(|header| header[0] & NEEDS_CHECKSUM == 0 && header[1] == WHOLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };

    fn packet(header: [u8; HEADER_BYTES], frame_bytes: usize) -> Vec<u8> {
        [&header[..], &vec![7; frame_bytes]].concat()
    }

    fn narrowed(header: [u8; HEADER_BYTES], frame_bytes: usize, allowed: Offloads) -> Option<Vec<u8>> {
        let mut packet = packet(header, frame_bytes);
        narrow(&mut packet, allowed).map(|_| packet[..HEADER_BYTES].to_vec())
    }

    #[test]
    fn features_count_only_with_those_they_build_on() {
        assert_eq!(Offloads::of([false, true, true, true]), Offloads::default());
        assert_eq!(
            Offloads::of([true, false, false, true]),
            Offloads { checksum: true, ..Offloads::default() }
        );
        assert_eq!(Offloads::of([true; 4]), ALL);
    }

    #[test]
    fn what_was_not_agreed_on_is_no_frame() {
        let checksum = [NEEDS_CHECKSUM, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        let large = [NEEDS_CHECKSUM, TCP4, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
        let none = Offloads::default();
        assert_eq!(narrowed([0; 12], 60, none), Some(vec![0; 12]));
        assert_eq!(narrowed(checksum, 60, none), None);
        assert_eq!(narrowed(checksum, 60, ALL), Some(checksum.to_vec()));
        assert_eq!(narrowed(large, 9000, ALL), Some(large.to_vec()));
        assert_eq!(narrowed(large, 9000, Offloads { tso4: false, ..ALL }), None);
        let with = |at: usize, value: u8| {
            let mut header = large;
            header[at] = value;
            narrowed(header, 9000, ALL)
        };
        for kind in [2, 3, 5, 6, ECN] {
            assert_eq!(with(1, kind), None, "kind {kind}");
        }
        assert!(with(1, TCP6 | ECN).is_some());
    }

    #[test]
    fn what_cannot_be_is_no_frame() {
        let large = |from: u8, at: u8, size: u8| [1, TCP4, 54, 0, size, 0, from, 0, at, 0, 0, 0];
        assert!(narrowed(large(34, 16, 9), 60, ALL).is_some());
        assert!(narrowed(large(34, 24, 9), 60, ALL).is_some(), "the last two bytes");
        assert_eq!(narrowed(large(34, 25, 9), 60, ALL), None, "a checksum past the end");
        assert_eq!(narrowed(large(34, 16, 0), 60, ALL), None, "segments of nothing");
        assert_eq!(
            narrowed([1, TCP4, 61, 0, 9, 0, 34, 0, 16, 0, 0, 0], 60, ALL),
            None,
            "headers longer than all"
        );
        assert_eq!(narrowed([0; 12], FRAME_BYTES_MIN - 1, ALL), None);
        assert_eq!(narrowed([0; 12], FRAME_BYTES_MAX + 1, ALL), None, "large, and not to be cut");
        assert!(narrowed(large(34, 16, 9), LARGE_FRAME_BYTES_MAX, ALL).is_some());
        assert_eq!(narrowed(large(34, 16, 9), LARGE_FRAME_BYTES_MAX + 1, ALL), None);
        assert!(narrow(&mut [0; 5], ALL).is_none());
    }

    #[test]
    fn fields_that_mean_nothing_are_gone() {
        assert_eq!(
            narrowed([0xfe, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 60, Offloads::default()),
            Some(vec![0; 12])
        );
        let valid = [CHECKSUM_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(narrowed(valid, 60, ALL), Some(valid.to_vec()), "what is known of it");
        assert_eq!(
            narrowed([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 60, ALL),
            Some(vec![0; 12]),
            "num_buffers"
        );
    }

    proptest! {
        #[test]
        fn what_passes_asks_for_no_more_than_allowed(
            header in any::<[u8; HEADER_BYTES]>(),
            length in 0usize..3000,
            features in any::<[bool; 4]>(),
        ) {
            let allowed = Offloads::of(features);
            let mut packet = packet(header, length);
            if let Some(work) = narrow(&mut packet, allowed) {
                let left = Header::of(*packet.first_chunk().unwrap());
                prop_assert!(allowed.checksum || left.flags == 0);
                prop_assert_eq!(work == Work::Segments, left.segments());
                prop_assert!(!left.segments() || allowed.allow(left.segmentation));
                let again = packet.clone();
                prop_assert_eq!(narrow(&mut packet, allowed), Some(work));
                prop_assert_eq!(packet, again);
            }
        }
    }
}
