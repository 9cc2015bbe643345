//! The binary form of an invitation.
//!
//! ```text
//!   network 32 | inviter 32 | nonce 16 | issued 8 | expires 8 | count 1 | addresses | signature 64
//!   address: 4, four bytes, port 2   or   6, sixteen bytes, port 2       (numbers are big-endian)
//! ```
//! Every claim has exactly one form, so that nobody can alter an invitation without breaking its signature.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rhizomorph_link::PeerKey;

use crate::invitation::Claims;
use crate::{NetworkId, limits};

/// Bytes of the signature at the end.
pub(crate) const SIGNATURE: usize = 64;

/// What is signed: everything but the signature.
pub(crate) fn encode_claims(claims: &Claims) -> Vec<u8> {
    let mut out = Vec::with_capacity(limits::INVITATION_BYTES);
    out.extend(claims.network.0);
    out.extend(claims.inviter.0);
    out.extend(claims.nonce);
    out.extend(claims.issued_at.to_be_bytes());
    out.extend(claims.expires_at.to_be_bytes());
    out.push(u8::try_from(claims.addrs.len()).unwrap_or(u8::MAX));
    for addr in &claims.addrs {
        match addr.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend(ip.octets());
            }
        }
        out.extend(addr.port().to_be_bytes());
    }
    out
}

/// Reads the binary form; `None` for anything that [`encode_claims`] and a signature would not have made.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Claims, [u8; SIGNATURE])> {
    if bytes.len() > limits::INVITATION_BYTES {
        return None;
    }
    let mut reader = Reader(bytes);
    let network = NetworkId(reader.take()?);
    let inviter = PeerKey(reader.take()?);
    let nonce = reader.take()?;
    let issued_at = u64::from_be_bytes(reader.take()?);
    let expires_at = u64::from_be_bytes(reader.take()?);
    let [count] = reader.take()?;
    if !(1..=limits::ADDRESSES).contains(&usize::from(count)) {
        return None;
    }
    let addrs = (0..count).map(|_| reader.address()).collect::<Option<Vec<_>>>()?;
    let signature = reader.take()?;
    reader
        .0
        .is_empty()
        .then_some((Claims { network, inviter, addrs, nonce, issued_at, expires_at }, signature))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip: IpAddr = match self.take()? {
            [4] => Ipv4Addr::from(self.take::<4>()?).into(),
            [6] => Ipv6Addr::from(self.take::<16>()?).into(),
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(self.take()?)))
    }
}
