//! The frames that travel as QUIC datagrams: the application's, and those that settle bundles.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::VERSION_BYTE;
use super::error::{Frame, FrameError};
use super::hello::exact;
use crate::ids::BundleId;
use crate::limits::{ACK_IDS_MAX, DATAGRAM_FRAME_MAX, DATAGRAM_MAX, STRIPES_MAX};
use crate::stripe_set::StripeSet;

const KIND: Frame = Frame::Datagram;
const APP: u8 = 1;
const ACK: u8 = 2;
const QUERY: u8 = 3;
const STATUS: u8 = 4;

/// One datagram frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// The application's bytes; both copies carry the same number.
    App {
        /// Counts the datagrams of this direction.
        seq: u64,
        /// At most [`DATAGRAM_MAX`] bytes.
        payload: Bytes,
    },
    /// These bundles have reached the application.
    Ack(Vec<BundleId>),
    /// What has become of these bundles?
    Query(Vec<BundleId>),
    /// This bundle has not reached the application; these stripes of it are here.
    Status {
        /// The bundle asked about.
        bundle: BundleId,
        /// The stripes present; of length 0 when nothing is known of the bundle.
        have: StripeSet,
    },
}

/// Encodes an application datagram without copying it into a [`Datagram`] first.
///
/// # Errors
/// [`FrameError::Field`] when `payload` is longer than [`DATAGRAM_MAX`].
pub fn encode_app(seq: u64, payload: &[u8]) -> Result<Bytes, FrameError> {
    if payload.len() > DATAGRAM_MAX {
        return Err(FrameError::field(KIND, "payload length", payload.len() as u64, "0 to 1100 bytes"));
    }
    let mut frame = head(APP, 8 + payload.len());
    frame.put_u64(seq);
    frame.put_slice(payload);
    Ok(frame.freeze())
}

impl Datagram {
    /// The frame's bytes, at most [`DATAGRAM_FRAME_MAX`].
    ///
    /// # Errors
    /// [`FrameError::Field`] when the payload is too long or there are no ids or too many.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        match self {
            Self::App { seq, payload } => encode_app(*seq, payload),
            Self::Ack(ids) => encode_ids(ACK, ids),
            Self::Query(ids) => encode_ids(QUERY, ids),
            Self::Status { bundle, have } => {
                let mut frame = head(STATUS, 10 + have.as_bytes().len());
                frame.put_u64(bundle.0);
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a StripeSet holds at most STRIPES_MAX = 1024"
                )]
                frame.put_u16(have.len() as u16);
                frame.put_slice(have.as_bytes());
                Ok(frame.freeze())
            }
        }
    }

    /// Reads one whole frame; an application payload shares `frame`'s memory.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(frame: &Bytes) -> Result<Self, FrameError> {
        if frame.len() > DATAGRAM_FRAME_MAX {
            return Err(FrameError::field(KIND, "length", frame.len() as u64, "at most 1110 bytes"));
        }
        let mut body = &frame[..];
        let version = body.try_get_u8().map_err(|_| FrameError::Truncated(KIND))?;
        if version != VERSION_BYTE {
            return Err(FrameError::Version(KIND, version.into()));
        }
        match body.try_get_u8().map_err(|_| FrameError::Truncated(KIND))? {
            APP => {
                let seq = body.try_get_u64().map_err(|_| FrameError::Truncated(KIND))?;
                Ok(Self::App { seq, payload: frame.slice_ref(body) })
            }
            ACK => decode_ids(body).map(Self::Ack),
            QUERY => decode_ids(body).map(Self::Query),
            STATUS => decode_status(body),
            other => Err(FrameError::field(KIND, "kind", other, "1 to 4")),
        }
    }
}

fn head(kind: u8, body_len: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(2 + body_len);
    frame.put_u8(VERSION_BYTE);
    frame.put_u8(kind);
    frame
}

fn encode_ids(kind: u8, ids: &[BundleId]) -> Result<Bytes, FrameError> {
    let count = id_count(ids.len())?;
    let mut frame = head(kind, 1 + 8 * ids.len());
    frame.put_u8(count);
    ids.iter().for_each(|id| frame.put_u64(id.0));
    Ok(frame.freeze())
}

fn decode_ids(mut body: &[u8]) -> Result<Vec<BundleId>, FrameError> {
    let count = usize::from(body.try_get_u8().map_err(|_| FrameError::Truncated(KIND))?);
    id_count(count)?;
    let mut ids = exact(body, 8 * count, KIND)?;
    Ok((0..count).map(|_| BundleId(ids.get_u64())).collect())
}

fn id_count(count: usize) -> Result<u8, FrameError> {
    u8::try_from(count).ok().filter(|_| (1..=ACK_IDS_MAX).contains(&count)).ok_or(FrameError::field(
        KIND,
        "id count",
        count as u64,
        "1 to 64",
    ))
}

fn decode_status(mut body: &[u8]) -> Result<Datagram, FrameError> {
    let bundle = BundleId(body.try_get_u64().map_err(|_| FrameError::Truncated(KIND))?);
    let len = usize::from(body.try_get_u16().map_err(|_| FrameError::Truncated(KIND))?);
    if len > STRIPES_MAX {
        return Err(FrameError::field(KIND, "stripe count", len as u64, "0 to 1024"));
    }
    let bits = exact(body, len.div_ceil(8), KIND)?;
    let have = StripeSet::from_bytes(bits, len);
    let have = have.ok_or(FrameError::field(KIND, "bitmap", len as u64, "no bit beyond the last stripe"))?;
    Ok(Datagram::Status { bundle, have })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_datagram() -> impl Strategy<Value = Datagram> {
        let ids = || prop::collection::vec(any::<u64>().prop_map(BundleId), 1..=ACK_IDS_MAX);
        prop_oneof![
            (any::<u64>(), prop::collection::vec(any::<u8>(), 0..=DATAGRAM_MAX))
                .prop_map(|(seq, payload)| Datagram::App { seq, payload: payload.into() }),
            ids().prop_map(Datagram::Ack),
            ids().prop_map(Datagram::Query),
            (any::<u64>(), prop::collection::vec(any::<bool>(), 0..=STRIPES_MAX)).prop_map(
                |(id, present)| {
                    let mut have = StripeSet::empty(present.len());
                    present.iter().enumerate().filter(|(_, set)| **set).for_each(|(index, _)| {
                        have.insert(index);
                    });
                    Datagram::Status { bundle: BundleId(id), have }
                }
            ),
        ]
    }

    #[test]
    fn too_much_is_refused_by_both_ends() {
        assert!(encode_app(0, &[0; DATAGRAM_MAX + 1]).is_err());
        assert!(Datagram::Ack(vec![]).encode().is_err());
        assert!(Datagram::Ack(vec![BundleId(0); ACK_IDS_MAX + 1]).encode().is_err());
        assert!(Datagram::decode(&Bytes::from(vec![1; DATAGRAM_FRAME_MAX + 1])).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(datagram in any_datagram()) {
            let frame = datagram.encode().unwrap();
            prop_assert!(frame.len() <= DATAGRAM_FRAME_MAX);
            prop_assert_eq!(Datagram::decode(&frame), Ok(datagram));
        }

        #[test]
        fn a_settling_frame_cut_or_extended_is_refused(datagram in any_datagram(), cut in 0usize..2000) {
            prop_assume!(!matches!(datagram, Datagram::App { .. }));
            let frame = datagram.encode().unwrap();
            prop_assert!(Datagram::decode(&frame.slice(..cut % frame.len())).is_err());
            let longer: Bytes = frame.iter().copied().chain([0]).collect();
            prop_assert!(Datagram::decode(&longer).is_err());
        }

        #[test]
        fn random_bytes_do_not_panic(kind in 0u8..6, bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            let _ = Datagram::decode(&Bytes::from(bytes.clone()));
            let _ = Datagram::decode(&[1, kind].into_iter().chain(bytes).collect());
        }
    }
}
