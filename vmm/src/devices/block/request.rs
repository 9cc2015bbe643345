//! One request: from a descriptor chain to something that cannot be wrong.

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

pub(super) use mycelium_ram_core::disk::SECTOR_BYTES;

use super::image::Geometry;
use crate::limits::DISK_REQUEST_BYTES_MAX;

/// Bytes of the header before the data.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of the range in a discard or write-zeroes request.
pub(super) const RANGE_BYTES: usize = 16;
/// Flag of a write-zeroes range: the space may be given back.
const UNMAP: u32 = 1;

/// What the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Read `bytes` from `offset` of the disk into guest memory.
    Read {
        /// Where, bytes.
        offset: u64,
        /// How much, bytes.
        bytes: u64,
    },
    /// Write `bytes` at `offset` from guest memory.
    Write {
        /// Where, bytes.
        offset: u64,
        /// How much, bytes.
        bytes: u64,
    },
    /// Make what was written durable.
    Flush,
    /// The range's contents are of no use any more.
    Discard {
        /// Where, bytes.
        offset: u64,
        /// How much, bytes.
        bytes: u64,
    },
    /// The range shall read as zeroes.
    WriteZeroes {
        /// Where, bytes.
        offset: u64,
        /// How much, bytes.
        bytes: u64,
        /// Its space may be given back.
        unmap: bool,
    },
    /// Tell the serial number.
    GetId,
}

/// Why a request is answered without being carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// We do not know, or did not offer, the request.
    Unsupported,
    /// It is past the end, against the disk's rules, or of a wrong size.
    Wrong,
}

/// The parts of a request that decide what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) header: &'a [u8; HEADER_BYTES],
    /// First bytes of what the guest sends after the header.
    pub(super) payload: &'a [u8],
    /// Bytes the guest sends after the header.
    pub(super) out_bytes: u64,
    /// Bytes the guest has room for, without the status byte.
    pub(super) in_bytes: u64,
}

impl Operation {
    /// Reads a request to a disk of `geometry`.
    ///
    /// # Errors
    /// [`Refused`], with which the request is answered.
    pub(super) fn parse(asked: Asked<'_>, geometry: &Geometry) -> Result<Operation, Refused> {
        let (kind, rest) = asked.header.split_first_chunk::<4>().ok_or(Refused::Wrong)?;
        let sector = rest.last_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Refused::Wrong)?;
        let within = |bytes: u64| {
            let range = geometry.range(sector, bytes).filter(|_| bytes <= DISK_REQUEST_BYTES_MAX);
            range.ok_or(Refused::Wrong)
        };
        match u32::from_le_bytes(*kind) {
            VIRTIO_BLK_T_IN => Ok(Operation::Read { offset: within(asked.in_bytes)?, bytes: asked.in_bytes }),
            VIRTIO_BLK_T_FLUSH => Ok(Operation::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Operation::GetId),
            _ if geometry.readonly => Err(Refused::Wrong),
            VIRTIO_BLK_T_OUT => {
                Ok(Operation::Write { offset: within(asked.out_bytes)?, bytes: asked.out_bytes })
            }
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => clear(kind, asked, geometry),
            _ => Err(Refused::Unsupported),
        }
    }

    /// Whether the disk is another after it, or must not forget what it is.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Operation::Read { .. } | Operation::GetId)
    }

    /// The range whose content it changes.
    pub(super) fn changed(&self) -> Range<u64> {
        match self {
            Operation::Write { offset, bytes }
            | Operation::Discard { offset, bytes }
            | Operation::WriteZeroes { offset, bytes, .. } => *offset..offset + bytes,
            _ => 0..0,
        }
    }

    /// Bytes it moves, for the rate limit.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Operation::Read { bytes, .. } | Operation::Write { bytes, .. } => *bytes,
            _ => 0,
        }
    }
}

/// Discard and write-zeroes carry exactly one range: we offer no more.
fn clear(kind: u32, asked: Asked<'_>, geometry: &Geometry) -> Result<Operation, Refused> {
    if asked.out_bytes != RANGE_BYTES as u64 {
        return Err(Refused::Wrong);
    }
    let (sector, rest) = asked.payload.split_first_chunk::<8>().ok_or(Refused::Wrong)?;
    let (sectors, rest) = rest.split_first_chunk::<4>().ok_or(Refused::Wrong)?;
    let flags = rest.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Refused::Wrong)?;
    let bytes = u64::from(u32::from_le_bytes(*sectors)) * SECTOR_BYTES;
    let offset = geometry.range(u64::from_le_bytes(*sector), bytes).ok_or(Refused::Wrong)?;
    match (kind, flags) {
        (VIRTIO_BLK_T_DISCARD, 0) => Ok(Operation::Discard { offset, bytes }),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0 | UNMAP) => {
            Ok(Operation::WriteZeroes { offset, bytes, unmap: flags == UNMAP })
        }
        _ => Err(Refused::Unsupported),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Geometry = Geometry { bytes: 1 << 20, block_bytes: 512, readonly: false };

    fn header(kind: u32, sector: u64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    fn parse(kind: u32, sector: u64, out: u64, room: u64, disk: &Geometry) -> Result<Operation, Refused> {
        let asked = Asked { header: &header(kind, sector), payload: &[], out_bytes: out, in_bytes: room };
        Operation::parse(asked, disk)
    }

    #[test]
    fn requests_stay_inside_the_disk() {
        assert_eq!(
            parse(VIRTIO_BLK_T_IN, 2047, 0, 512, &DISK),
            Ok(Operation::Read { offset: 2047 * 512, bytes: 512 })
        );
        for (sector, bytes) in [(2047, 1024), (2048, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)] {
            assert_eq!(parse(VIRTIO_BLK_T_IN, sector, 0, bytes, &DISK), Err(Refused::Wrong), "{sector}");
            assert_eq!(parse(VIRTIO_BLK_T_OUT, sector, bytes, 0, &DISK), Err(Refused::Wrong), "{sector}");
        }
    }

    #[test]
    fn a_request_without_measure_is_refused() {
        let disk = Geometry { bytes: 1 << 40, ..DISK };
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            let of = |bytes| parse(kind, 0, bytes, bytes, &disk);
            assert!(of(DISK_REQUEST_BYTES_MAX).is_ok());
            assert_eq!(of(DISK_REQUEST_BYTES_MAX + 512), Err(Refused::Wrong));
        }
    }

    #[test]
    fn a_readonly_disk_takes_no_changes() {
        let disk = Geometry { readonly: true, ..DISK };
        for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(parse(kind, 0, 512, 0, &disk), Err(Refused::Wrong));
        }
        assert!(parse(VIRTIO_BLK_T_IN, 0, 0, 512, &disk).is_ok());
    }

    #[test]
    fn a_range_is_read_and_its_flags_are_checked() {
        let mut payload = [0; RANGE_BYTES];
        payload[..8].copy_from_slice(&8u64.to_le_bytes());
        payload[8..12].copy_from_slice(&16u32.to_le_bytes());
        let mut ask = |kind, flags: u32| {
            payload[12..].copy_from_slice(&flags.to_le_bytes());
            let asked = Asked { header: &header(kind, 0), payload: &payload, out_bytes: 16, in_bytes: 0 };
            Operation::parse(asked, &DISK)
        };
        assert_eq!(ask(VIRTIO_BLK_T_DISCARD, 0), Ok(Operation::Discard { offset: 4096, bytes: 8192 }));
        assert_eq!(ask(VIRTIO_BLK_T_DISCARD, 1), Err(Refused::Unsupported));
        assert_eq!(
            ask(VIRTIO_BLK_T_WRITE_ZEROES, 1),
            Ok(Operation::WriteZeroes { offset: 4096, bytes: 8192, unmap: true })
        );
        assert_eq!(ask(VIRTIO_BLK_T_WRITE_ZEROES, 2), Err(Refused::Unsupported));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_lies_inside(
            kind in 0u32..16, sector: u64, out in 0u64..1 << 21, room in 0u64..1 << 21,
            payload in proptest::collection::vec(any::<u8>(), 0..20)
        ) {
            let asked = Asked { header: &header(kind, sector), payload: &payload, out_bytes: out, in_bytes: room };
            if let Ok(Operation::Read { offset, bytes } | Operation::Write { offset, bytes }
                | Operation::Discard { offset, bytes } | Operation::WriteZeroes { offset, bytes, .. })
                = Operation::parse(asked, &DISK)
            {
                prop_assert!(offset + bytes <= DISK.bytes);
            }
        }
    }
}
