//! Entry points for a fuzzer: each takes arbitrary bytes as a hostile peer's and must neither panic nor grow.

use bytes::Bytes;

use crate::codec::{Datagram, Hello, STRIPE_HEADER_LEN, StripeHeader, Welcome};
use crate::dedup::DedupWindow;
use crate::limits::HELD_BYTES_MAX;
use crate::reassembly::Reassembly;

/// A hello; what decodes must encode to the same bytes.
pub fn fuzz_hello(data: &[u8]) {
    if let Ok(hello) = Hello::decode(data) {
        assert_eq!(hello.encode().as_deref(), Ok(data));
    }
}

/// A welcome; what decodes must encode to the same bytes.
pub fn fuzz_welcome(data: &[u8]) {
    if let Ok(welcome) = Welcome::decode(data) {
        assert_eq!(welcome.encode(), data);
    }
}

/// A stripe header; what decodes must stay inside its bundle and encode to the same bytes.
pub fn fuzz_stripe(data: &[u8]) {
    let Some(head) = data.first_chunk::<STRIPE_HEADER_LEN>() else { return };
    if let Ok(stripe) = StripeHeader::decode(head) {
        assert!(stripe.offset() + stripe.len() <= stripe.bundle_len());
        assert_eq!(stripe.encode(), *head);
    }
}

/// A datagram; what decodes must encode to the same bytes.
pub fn fuzz_datagram(data: &[u8]) {
    if let Ok(datagram) = Datagram::decode(&Bytes::copy_from_slice(data)) {
        assert_eq!(datagram.encode().as_deref(), Ok(data));
    }
}

/// A stream of stripe headers into reassembly, each followed by as many bytes as it announces; every third whole
/// bundle stays untaken. Memory held must stay within its bound.
pub fn fuzz_reassembly(data: &[u8]) {
    let mut inbox = Reassembly::default();
    for (count, head) in data.as_chunks::<STRIPE_HEADER_LEN>().0.iter().enumerate() {
        let Ok(stripe) = StripeHeader::decode(head) else { continue };
        let whole = inbox.insert(&stripe, Bytes::from(vec![0; stripe.len()]));
        assert!(inbox.held_bytes() <= HELD_BYTES_MAX);
        if let (Ok(Some(whole)), true) = (whole, count % 3 != 0) {
            inbox.take(whole.id);
        }
    }
}

/// Sequence numbers into the duplicate window: none may pass twice in a row.
pub fn fuzz_dedup(data: &[u8]) {
    let mut window = DedupWindow::default();
    for number in data.as_chunks::<8>().0 {
        let seq = u64::from_be_bytes(*number);
        window.first(seq);
        assert!(seq == u64::MAX || !window.first(seq));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_entry_point_panics_on_random_bytes(data in prop::collection::vec(any::<u8>(), 0..600)) {
            for fuzz in [fuzz_hello, fuzz_welcome, fuzz_stripe, fuzz_datagram, fuzz_reassembly, fuzz_dedup] {
                fuzz(&data);
            }
        }
    }
}
