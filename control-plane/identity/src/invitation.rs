//! Invitations: one line of text that lets a node join, once.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore;
use rand::rngs::OsRng;
use rhizomorph_link::{Identity, PeerKey};

use crate::codec::{decode, encode_claims};
use crate::{NetworkId, limits};

/// How the text begins: people and programs recognise it, and its format, by this.
const PREFIX: &str = "mycelium1-";
/// Keeps a signature under an invitation from being shown as one under anything else.
const DOMAIN: &[u8] = b"mycelium-invitation/1\0";

/// What an invitation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// To which network.
    pub network: NetworkId,
    /// Who invites, and will answer.
    pub inviter: PeerKey,
    /// Where the inviter listens: 1 to [`limits::ADDRESSES`].
    pub addrs: Vec<SocketAddr>,
    /// Tells this invitation from all others, so that it can be spent.
    pub nonce: [u8; 16],
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds; from this second on it is expired.
    pub expires_at: u64,
}

/// Claims signed by the inviter. One that was read has a good signature; whether it is good *now*, [`Invitation::check`]
/// tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    claims: Claims,
    signature: [u8; 64],
}

/// An invitation that cannot be made or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// Not an invitation at all.
    #[error(
        "this is no invitation ({0}); copy the whole line that `mycelium network invite` printed, from \"{PREFIX}\" to its end"
    )]
    Malformed(&'static str),
    /// Altered, or not by whom it says.
    #[error(
        "the invitation's signature is wrong: it was altered or copied in part; copy the whole line again, or ask for a new one"
    )]
    Signature,
    /// Too late.
    #[error(
        "the invitation expired {ago_s} s ago (it was good until {at} unix seconds); make a new one on a member with `mycelium network invite`"
    )]
    Expired {
        /// When, in unix seconds.
        at: u64,
        /// How long ago, in seconds.
        ago_s: u64,
    },
    /// Too early.
    #[error(
        "the invitation is good only in {in_s} s: this machine's clock is behind the inviter's; set both by NTP and try again"
    )]
    NotYet {
        /// In how many seconds.
        in_s: u64,
    },
    /// Good for longer than allowed.
    #[error(
        "the invitation would live for {0} s, at most {max} s are allowed; make one with `mycelium network invite --ttl` within that",
        max = limits::LIFETIME_S
    )]
    TooLong(u64),
    /// No address or too many.
    #[error("an invitation names 1 to {max} addresses, not {0}; choose those that others can reach", max = limits::ADDRESSES)]
    Addresses(usize),
    /// The system gave no randomness.
    #[error("the system gives no random numbers ({0}); check that /dev/urandom is readable here")]
    Random(String),
}

impl Invitation {
    /// Invites to `network` in the name of `inviter`, from `now` (unix seconds) for `ttl_s` seconds.
    ///
    /// # Errors
    /// [`InvitationError::TooLong`], [`InvitationError::Addresses`], [`InvitationError::Random`].
    pub fn issue(
        inviter: &Identity,
        network: NetworkId,
        addrs: Vec<SocketAddr>,
        now: u64,
        ttl_s: u64,
    ) -> Result<Self, InvitationError> {
        let mut nonce = [0; 16];
        OsRng.try_fill_bytes(&mut nonce).map_err(|error| InvitationError::Random(error.to_string()))?;
        let expires_at = now.saturating_add(ttl_s);
        Self::sign(
            inviter,
            Claims { network, inviter: inviter.peer_key(), addrs, nonce, issued_at: now, expires_at },
        )
    }

    /// Signs claims as they are; the inviter in them becomes the signer.
    ///
    /// # Errors
    /// [`InvitationError::TooLong`], [`InvitationError::Addresses`].
    pub fn sign(inviter: &Identity, claims: Claims) -> Result<Self, InvitationError> {
        // Flow labels and scopes have no meaning elsewhere.
        let addrs: Vec<_> = claims.addrs.iter().map(|a| SocketAddr::new(a.ip(), a.port())).collect();
        let claims = Claims { inviter: inviter.peer_key(), addrs, ..claims };
        within_limits(&claims)?;
        let signature = inviter.sign(&signed_bytes(&claims));
        Ok(Self { claims, signature })
    }

    /// What it says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether it is good at `now` (unix seconds).
    ///
    /// # Errors
    /// [`InvitationError::Expired`], [`InvitationError::NotYet`], [`InvitationError::TooLong`].
    pub fn check(&self, now: u64) -> Result<(), InvitationError> {
        let claims = &self.claims;
        within_limits(claims)?;
        if now >= claims.expires_at {
            return Err(InvitationError::Expired { at: claims.expires_at, ago_s: now - claims.expires_at });
        }
        let begins = claims.issued_at.saturating_sub(limits::CLOCK_TOLERANCE_S);
        if now < begins { Err(InvitationError::NotYet { in_s: begins - now }) } else { Ok(()) }
    }
}

fn within_limits(claims: &Claims) -> Result<(), InvitationError> {
    let (count, lifetime) = (claims.addrs.len(), claims.expires_at.saturating_sub(claims.issued_at));
    if !(1..=limits::ADDRESSES).contains(&count) {
        return Err(InvitationError::Addresses(count));
    }
    if lifetime > limits::LIFETIME_S { Err(InvitationError::TooLong(lifetime)) } else { Ok(()) }
}

fn signed_bytes(claims: &Claims) -> Vec<u8> {
    [DOMAIN, &encode_claims(claims)].concat()
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [encode_claims(&self.claims).as_slice(), &self.signature].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > limits::INVITATION_CHARS {
            return Err(InvitationError::Malformed("it is longer than any invitation"));
        }
        let coded =
            text.strip_prefix(PREFIX).ok_or(InvitationError::Malformed("it does not begin as one"))?;
        let bytes = URL_SAFE_NO_PAD
            .decode(coded)
            .map_err(|_| InvitationError::Malformed("it holds a character that none has, or lacks one"))?;
        let (claims, signature) =
            decode(&bytes).ok_or(InvitationError::Malformed("a part of it is missing"))?;
        if !claims.inviter.verify(&signed_bytes(&claims), &signature) {
            return Err(InvitationError::Signature);
        }
        Ok(Self { claims, signature })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn invitation(addrs: Vec<SocketAddr>) -> Invitation {
        Invitation::issue(&Identity::from_seed(&[3; 32]), NetworkId([9; 32]), addrs, 1_000, 600).unwrap()
    }

    fn one() -> Invitation {
        invitation(vec!["10.0.0.2:7946".parse().unwrap()])
    }

    #[test]
    fn is_good_from_its_issue_to_its_expiry() {
        let invitation = one();
        assert_eq!(invitation.check(1_000), Ok(()));
        assert_eq!(invitation.check(1_599), Ok(()));
        assert_eq!(invitation.check(1_600), Err(InvitationError::Expired { at: 1_600, ago_s: 0 }));
        assert_eq!(invitation.check(971), Ok(()));
        assert_eq!(invitation.check(960), Err(InvitationError::NotYet { in_s: 10 }));
        let text = invitation.check(9_999).unwrap_err().to_string();
        assert!(text.contains("mycelium network invite"), "{text}");
    }

    #[test]
    fn what_cannot_be_signed_is_named() {
        let (me, network) = (Identity::from_seed(&[3; 32]), NetworkId([9; 32]));
        let addr: SocketAddr = "10.0.0.2:7946".parse().unwrap();
        let issue = |addrs, ttl| Invitation::issue(&me, network, addrs, 0, ttl).unwrap_err();
        assert_eq!(issue(vec![], 1), InvitationError::Addresses(0));
        assert_eq!(issue(vec![addr; 9], 1), InvitationError::Addresses(9));
        assert!(matches!(issue(vec![addr], u64::MAX), InvitationError::TooLong(_)));
    }

    #[test]
    fn a_longer_lived_one_of_a_foreign_program_is_refused() {
        let mut claims = one().claims;
        claims.expires_at = claims.issued_at + limits::LIFETIME_S + 1;
        let signature = Identity::from_seed(&[3; 32]).sign(&signed_bytes(&claims));
        let text = Invitation { claims, signature }.to_string();
        let check = text.parse::<Invitation>().unwrap().check(1_000);
        assert_eq!(check, Err(InvitationError::TooLong(limits::LIFETIME_S + 1)));
    }

    #[test]
    fn a_signature_of_another_kind_does_not_count() {
        let claims = one().claims;
        let signature = Identity::from_seed(&[3; 32]).sign(&encode_claims(&claims));
        let text = Invitation { claims, signature }.to_string();
        assert_eq!(text.parse::<Invitation>(), Err(InvitationError::Signature));
    }

    #[test]
    fn the_longest_fits_the_bounds() {
        let text = invitation(vec!["[fd00::2]:7946".parse().unwrap(); 8]).to_string();
        assert!(text.parse::<Invitation>().is_ok());
        assert!(format!("{text}AAAA").parse::<Invitation>().is_err(), "trailing bytes");
        assert!("x".repeat(9_999).parse::<Invitation>().is_err());
    }

    proptest! {
        #[test]
        fn text_round_trip(addrs in prop::collection::vec(any::<SocketAddr>(), 1..=8)) {
            let invitation = invitation(addrs);
            prop_assert_eq!(invitation.to_string().parse(), Ok(invitation));
        }

        #[test]
        fn any_flipped_bit_is_refused(at: prop::sample::Index, bit in 0u8..8) {
            let invitation = one();
            let mut bytes = [encode_claims(&invitation.claims).as_slice(), &invitation.signature].concat();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
            prop_assert!(text.parse::<Invitation>().is_err());
        }

        #[test]
        fn any_flipped_bit_of_the_text_is_refused(at: prop::sample::Index, bit in 0u8..7) {
            let mut text = one().to_string().into_bytes();
            let at = at.index(text.len());
            text[at] ^= 1 << bit;
            let text = String::from_utf8(text).unwrap();
            prop_assume!(text.trim().len() == text.len());
            prop_assert!(text.parse::<Invitation>().is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(mycelium1-)?.{0,300}") {
            let _ = text.parse::<Invitation>();
        }
    }
}
