//! An Ed25519 public key as the SubjectPublicKeyInfo that TLS carries (RFC 8410). It has exactly one encoding.

use crate::peer_key::PeerKey;

/// SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING of 32 bytes }, up to the key itself.
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

pub(super) fn encode(key: &PeerKey) -> Vec<u8> {
    [&PREFIX[..], &key.0].concat()
}

pub(super) fn parse(der: &[u8]) -> Option<PeerKey> {
    let key = der.strip_prefix(&PREFIX)?;
    key.try_into().ok().map(PeerKey)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip_and_nothing_longer_or_shorter(key: [u8; 32]) {
            let der = encode(&PeerKey(key));
            prop_assert_eq!(parse(&der), Some(PeerKey(key)));
            prop_assert_eq!(parse(&der[..43]), None);
            prop_assert_eq!(parse(&[der, vec![0]].concat()), None);
        }

        #[test]
        fn random_bytes_are_no_key(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assume!(!bytes.starts_with(&PREFIX));
            prop_assert_eq!(parse(&bytes), None);
        }
    }
}
