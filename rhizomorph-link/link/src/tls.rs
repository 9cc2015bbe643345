//! TLS 1.3 with raw public keys (RFC 7250) on both sides: a key is a name, and no authority vouches for it.
//!
//! Public because other protocols between the same nodes (the arbiter's, for one) use the same identities under
//! another ALPN.

mod spki;
mod verifier;

use std::any::Any;
use std::sync::Arc;
use std::{collections::HashSet, fmt};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::CertificateDer;
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;

use crate::identity::Identity;
use crate::peer_key::PeerKey;
use verifier::KeyVerifier;

/// The name to give to `Endpoint::connect`. It is not sent and not checked: the key is.
pub const SERVER_NAME: &str = "rhizomorph";

/// Which keys a listener lets in.
#[derive(Clone)]
pub struct AllowList(Arc<dyn Fn(&PeerKey) -> bool + Send + Sync>);

impl AllowList {
    /// Exactly these keys.
    pub fn only(keys: impl IntoIterator<Item = PeerKey>) -> Self {
        let keys: HashSet<PeerKey> = keys.into_iter().collect();
        Self::from_fn(move |key| keys.contains(key))
    }

    /// Asks `permits` at every handshake, so that the answer may change. It must be quick and must not block.
    pub fn from_fn(permits: impl Fn(&PeerKey) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(permits))
    }

    /// Whether that key may connect.
    pub fn permits(&self, key: &PeerKey) -> bool {
        (self.0)(key)
    }
}

impl fmt::Debug for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AllowList").finish_non_exhaustive()
    }
}

/// A configuration could not be built. With an [`Identity`] this crate made, that is a defect of this program.
#[derive(Debug, thiserror::Error)]
#[error("TLS could not be set up; this build of the program is defective, please report it")]
pub struct TlsError(#[from] rustls::Error);

/// A QUIC client that proves `identity` and accepts exactly the key `expected`.
///
/// # Errors
/// [`TlsError`].
pub fn quic_client_config(
    identity: &Identity,
    expected: PeerKey,
    alpn: &[u8],
) -> Result<quinn::ClientConfig, TlsError> {
    let verifier = KeyVerifier::new(AllowList::only([expected]));
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(identity)?)));
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.enable_sni = false;
    // A resumed session would skip the key check.
    tls.resumption = Resumption::disabled();
    let quic = QuicClientConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// A QUIC server that proves `identity` and lets in only the keys of `allow`.
///
/// # Errors
/// [`TlsError`].
pub fn quic_server_config(
    identity: &Identity,
    allow: AllowList,
    alpn: &[u8],
) -> Result<quinn::ServerConfig, TlsError> {
    quic_server_config_of(identity, allow, &[alpn])
}

/// As [`quic_server_config`], for several protocols on one socket; [`alpn`] tells which one a connection speaks.
///
/// # Errors
/// [`TlsError`].
pub fn quic_server_config_of(
    identity: &Identity,
    allow: AllowList,
    alpns: &[&[u8]],
) -> Result<quinn::ServerConfig, TlsError> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(KeyVerifier::new(allow))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(identity)?)));
    tls.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    tls.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(quic)))
}

/// The key the other end of an established connection has proved, or `None` if it proved none (which the
/// configurations above do not let happen).
pub fn peer_key(connection: &quinn::Connection) -> Option<PeerKey> {
    let identity: Box<dyn Any> = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    spki::parse(chain.first()?)
}

/// The protocol both ends of an established connection have agreed on.
pub fn alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Ring with AES-128-GCM first: a gigabyte costs less than with AES-256, and 128 bits are enough.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    Arc::new(provider)
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let signer = ring::sign::any_eddsa_type(&identity.pkcs8()?)?;
    let public = CertificateDer::from(spki::encode(&identity.peer_key()));
    Ok(Arc::new(CertifiedKey::new(vec![public], signer)))
}

#[cfg(feature = "fuzzing")]
pub(crate) fn spki_key(der: &[u8]) -> Option<PeerKey> {
    spki::parse(der)
}
