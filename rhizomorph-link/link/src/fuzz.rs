//! Entry points for a fuzzer, for what this crate parses itself; the frames are in `rhizomorph_proto::fuzz`.

use crate::peer_key::PeerKey;
use crate::ticket::Ticket;
use crate::tls::spki_key;

/// A key as TLS carries it.
pub fn fuzz_spki(data: &[u8]) {
    if let Some(PeerKey(key)) = spki_key(data) {
        assert!(data.ends_with(&key));
    }
}

/// A ticket or a key as text; what parses must print and parse again to the same.
pub fn fuzz_ticket(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(ticket) = text.parse::<Ticket>() {
        assert_eq!(ticket.to_string().parse(), Ok(ticket));
    }
    if let Ok(key) = text.parse::<PeerKey>() {
        assert_eq!(key.to_string(), text);
    }
}
