//! The head of a stripe. Its geometry follows from three numbers, so stripes of one bundle cannot overlap.

use bytes::{Buf, BufMut};

use super::VERSION_BYTE;
use super::error::{Frame, FrameError};
use crate::ids::{BundleId, Priority};
use crate::limits::{BUNDLE_MAX, STRIPE_MAX, STRIPE_MIN};

/// Bytes of an encoded [`StripeHeader`].
pub const STRIPE_HEADER_LEN: usize = 24;

const KIND_STRIPE: u8 = 1;

/// Which part of which bundle the bytes that follow are.
///
/// Built only by [`StripeHeader::new`] and [`StripeHeader::decode`], which admit no geometry out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeHeader {
    bundle: BundleId,
    priority: Priority,
    bundle_len: u32,
    stripe_size: u32,
    index: u32,
}

impl StripeHeader {
    /// Stripe `index` of a bundle of `bundle_len` bytes cut every `stripe_size` bytes.
    ///
    /// # Errors
    /// [`FrameError::Field`] naming the number that is out of bounds.
    pub fn new(
        bundle: BundleId,
        priority: Priority,
        bundle_len: u32,
        stripe_size: u32,
        index: u32,
    ) -> Result<Self, FrameError> {
        let header = Self { bundle, priority, bundle_len, stripe_size, index };
        if bundle_len as usize > BUNDLE_MAX {
            return Err(FrameError::field(Frame::Stripe, "bundle length", bundle_len, "0 to 16777216 bytes"));
        }
        if !(STRIPE_MIN..=STRIPE_MAX).contains(&(stripe_size as usize)) {
            return Err(FrameError::field(
                Frame::Stripe,
                "stripe size",
                stripe_size,
                "16384 to 262144 bytes",
            ));
        }
        if index as usize >= header.count() {
            return Err(FrameError::field(Frame::Stripe, "index", index, "below the bundle's stripe count"));
        }
        Ok(header)
    }

    /// The bundle it is part of.
    pub fn bundle(&self) -> BundleId {
        self.bundle
    }

    /// The bundle's class.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Bytes of the whole bundle.
    pub fn bundle_len(&self) -> usize {
        self.bundle_len as usize
    }

    /// Bytes of every stripe of the bundle but the last.
    pub fn stripe_size(&self) -> usize {
        self.stripe_size as usize
    }

    /// Number of this stripe within its bundle.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// Stripes of the bundle; an empty bundle has one empty stripe.
    pub fn count(&self) -> usize {
        self.bundle_len.div_ceil(self.stripe_size).max(1) as usize
    }

    /// Another stripe of the same bundle, if it has so many.
    pub fn sibling(&self, index: usize) -> Option<Self> {
        let index = u32::try_from(index).ok()?;
        ((index as usize) < self.count()).then_some(Self { index, ..*self })
    }

    /// Where in the bundle this stripe's bytes begin.
    pub fn offset(&self) -> usize {
        self.index() * self.stripe_size()
    }

    /// Bytes of this stripe.
    #[expect(clippy::len_without_is_empty, reason = "a length on the wire, not a collection")]
    pub fn len(&self) -> usize {
        (self.bundle_len() - self.offset()).min(self.stripe_size())
    }

    /// The encoded header.
    pub fn encode(&self) -> [u8; STRIPE_HEADER_LEN] {
        let mut frame = [0; STRIPE_HEADER_LEN];
        let mut out = &mut frame[..];
        out.put_u8(VERSION_BYTE);
        out.put_u8(KIND_STRIPE);
        out.put_u8(u8::from(self.priority == Priority::Bulk));
        out.put_u8(0);
        out.put_u32(self.index);
        out.put_u64(self.bundle.0);
        out.put_u32(self.bundle_len);
        out.put_u32(self.stripe_size);
        frame
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(frame: &[u8; STRIPE_HEADER_LEN]) -> Result<Self, FrameError> {
        const KIND: Frame = Frame::Stripe;
        let mut body = &frame[..];
        let version = body.get_u8();
        if version != VERSION_BYTE {
            return Err(FrameError::Version(KIND, version.into()));
        }
        let kind = body.get_u8();
        if kind != KIND_STRIPE {
            return Err(FrameError::field(KIND, "kind", kind, "1"));
        }
        let priority = match body.get_u8() {
            0 => Priority::Control,
            1 => Priority::Bulk,
            other => return Err(FrameError::field(KIND, "priority", other, "0 or 1")),
        };
        let flags = body.get_u8();
        if flags != 0 {
            return Err(FrameError::field(KIND, "flags", flags, "0"));
        }
        let index = body.get_u32();
        let bundle = BundleId(body.get_u64());
        let bundle_len = body.get_u32();
        Self::new(bundle, priority, bundle_len, body.get_u32(), index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn geometry_covers_the_bundle_exactly() {
        let stripe = |index| StripeHeader::new(BundleId(1), Priority::Bulk, 40_000, 16_384, index);
        let parts: Vec<_> =
            (0..3).map(|index| stripe(index).unwrap()).map(|s| (s.offset(), s.len())).collect();
        assert_eq!(parts, [(0, 16_384), (16_384, 16_384), (32_768, 7_232)]);
        assert!(stripe(3).is_err());
    }

    #[test]
    fn an_empty_bundle_is_one_empty_stripe() {
        let stripe = StripeHeader::new(BundleId(0), Priority::Control, 0, 16_384, 0).unwrap();
        assert_eq!((stripe.count(), stripe.len()), (1, 0));
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        let new = |len: usize, size: usize| {
            StripeHeader::new(
                BundleId(0),
                Priority::Bulk,
                u32::try_from(len).unwrap(),
                u32::try_from(size).unwrap(),
                0,
            )
        };
        assert!(new(BUNDLE_MAX + 1, STRIPE_MAX).is_err());
        assert!(new(1, STRIPE_MIN - 1).is_err());
        assert!(new(1, STRIPE_MAX + 1).is_err());
        assert!(new(BUNDLE_MAX, STRIPE_MIN).is_ok());
    }

    proptest! {
        #[test]
        fn round_trip(bundle: u64, bulk: bool, len in 0u32..=16 << 20, size in 16_384u32..=262_144, index: u32) {
            let priority = if bulk { Priority::Bulk } else { Priority::Control };
            let count = len.div_ceil(size).max(1);
            let header = StripeHeader::new(BundleId(bundle), priority, len, size, index % count).unwrap();
            prop_assert_eq!(StripeHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn random_bytes_do_not_panic(bytes: [u8; STRIPE_HEADER_LEN]) {
            let _ = StripeHeader::decode(&bytes);
        }

        #[test]
        fn nearly_right_bytes_do_not_panic(mut bytes: [u8; STRIPE_HEADER_LEN]) {
            bytes[..4].copy_from_slice(&[1, 1, 1, 0]);
            if let Ok(header) = StripeHeader::decode(&bytes) {
                prop_assert!(header.offset() + header.len() <= header.bundle_len());
            }
        }
    }
}
