//! How to reach a node, as one line of text.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::limits::ADDRESSES_MAX;
use crate::peer_key::{PeerKey, PeerKeyError};

/// A node's key and addresses, written `KEY@ADDRESS,ADDRESS`; every address becomes a path.
///
/// ```
/// let text = format!("{}@10.0.0.2:7946,[fd00::2]:7946", "ab".repeat(32));
/// let ticket: rhizomorph_link::Ticket = text.parse()?;
/// assert_eq!(ticket.addrs.len(), 2);
/// assert_eq!(ticket.to_string(), text);
/// # Ok::<(), rhizomorph_link::TicketError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The node's public key.
    pub key: PeerKey,
    /// Where it listens; at least one.
    pub addrs: Vec<SocketAddr>,
}

/// Text that is no ticket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// No `@`.
    #[error("a ticket is written KEY@ADDRESS,ADDRESS; the @ is missing")]
    Shape,
    /// The key.
    #[error("the ticket's key does not parse")]
    Key(#[from] PeerKeyError),
    /// An address.
    #[error("{0:?} in the ticket is no address: expected IP:PORT, as 10.0.0.2:7946 or [fd00::2]:7946")]
    Address(String),
    /// Too many addresses.
    #[error("the ticket names {0} addresses, at most {ADDRESSES_MAX} are used; drop some")]
    TooMany(usize),
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.key)?;
        self.addrs.iter().enumerate().try_for_each(|(at, addr)| {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{addr}")
        })
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, addrs) = text.trim().split_once('@').ok_or(TicketError::Shape)?;
        let parse =
            |addr: &str| addr.parse().map_err(|_| TicketError::Address(addr.chars().take(80).collect()));
        let addrs = addrs.split(',').map(parse).collect::<Result<Vec<SocketAddr>, _>>()?;
        if addrs.len() > ADDRESSES_MAX {
            return Err(TicketError::TooMany(addrs.len()));
        }
        Ok(Self { key: key.parse()?, addrs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_fault_is_named() {
        let key = "00".repeat(32);
        let parse = |text: &str| text.parse::<Ticket>().unwrap_err();
        assert_eq!(parse(&key), TicketError::Shape);
        assert!(matches!(parse("xy@1.2.3.4:5"), TicketError::Key(_)));
        assert_eq!(parse(&format!("{key}@1.2.3.4")), TicketError::Address("1.2.3.4".into()));
        assert_eq!(parse(&format!("{key}@")), TicketError::Address(String::new()));
        assert_eq!(parse(&format!("{key}@{}", ["1.2.3.4:5"; 9].join(","))), TicketError::TooMany(9));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,200}") {
            let _ = text.parse::<Ticket>();
        }

        #[test]
        fn text_round_trip(key: [u8; 32], addrs in prop::collection::vec(any::<SocketAddr>(), 1..=8)) {
            // An IPv6 flow label has no text form.
            let plain = |addr: SocketAddr| SocketAddr::new(addr.ip(), addr.port());
            let ticket = Ticket { key: PeerKey(key), addrs: addrs.into_iter().map(plain).collect() };
            prop_assert_eq!(ticket.to_string().parse(), Ok(ticket));
        }
    }
}
