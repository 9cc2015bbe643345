//! The header before every packet: `struct virtio_vsock_hdr`.

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 44;

/// Context id of the host.
pub(super) const HOST_CID: u64 = 2;

/// The only kind of socket offered.
pub(super) const STREAM: u16 = 1;

/// Flags of SHUTDOWN: the sender will not receive, will not send any more.
pub(super) const NO_RECEIVE: u32 = 1;
pub(super) const NO_SEND: u32 = 2;

/// What a packet does.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload.
    pub(super) length: u32,
    /// Kind of socket.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes the sender has room for, all in all.
    pub(super) buf_alloc: u32,
    /// Bytes the sender has passed on, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads one; anything decodes.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Header {
        let mut rest = &bytes[..];
        Header {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            length: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes it.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        for field in [self.src_port, self.dst_port, self.length] {
            put(&field.to_le_bytes());
        }
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        for field in [self.flags, self.buf_alloc, self.fwd_cnt] {
            put(&field.to_le_bytes());
        }
        bytes
    }

    /// The RST that answers this packet.
    pub(super) fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Header::default()
        }
    }
}

/// The next field; a header's fields are as long as its array.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, after) = rest.split_first_chunk::<N>().expect("the fields add up to a header");
    *rest = after;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_header_and_come_back(bytes in proptest::array::uniform32(any::<u8>()), more in any::<[u8; 12]>()) {
            let mut whole = [0; HEADER_BYTES];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&more);
            prop_assert_eq!(Header::decode(&whole).encode(), whole);
        }
    }

    #[test]
    fn fields_lie_where_the_standard_puts_them() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let header = Header::decode(&bytes);
        assert_eq!(header.src_cid.to_le_bytes()[0], 0);
        assert_eq!(header.dst_cid.to_le_bytes()[0], 8);
        assert_eq!(
            [header.src_port, header.dst_port, header.length].map(|f| f.to_le_bytes()[0]),
            [16, 20, 24]
        );
        assert_eq!([header.kind, header.op].map(|f| f.to_le_bytes()[0]), [28, 30]);
        assert_eq!(
            [header.flags, header.buf_alloc, header.fwd_cnt].map(|f| f.to_le_bytes()[0]),
            [32, 36, 40]
        );
    }
}
