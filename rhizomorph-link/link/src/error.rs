//! What can go wrong at the link's public seams.

use std::io;
use std::net::SocketAddr;

use rhizomorph_proto::codec::FrameError;

use crate::close::CloseReason;
use crate::limits::{BUNDLE_MAX, DATAGRAM_MAX, LABEL_MAX, PATHS_MAX};
use crate::runtime::RuntimeError;
use crate::tls::TlsError;

/// Something was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link is closed.
    #[error("the link is closed: {0}; open a new one")]
    Closed(CloseReason),
    /// No path has a connection at present.
    #[error("no path of the link is up, the datagram was dropped; paths are redialed, send again later")]
    NoPath,
    /// A datagram over its bound.
    #[error("a datagram of {0} bytes; at most {DATAGRAM_MAX}, send it as a bundle")]
    DatagramTooLarge(usize),
    /// A bundle over its bound.
    #[error("a bundle of {0} bytes; at most {BUNDLE_MAX}, cut it into several")]
    BundleTooLarge(usize),
    /// A stripe size out of bounds was configured.
    #[error("the link's options do not allow sending")]
    Options(#[from] FrameError),
}

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// No address, or too many.
    #[error("{0} addresses to listen on; give 1 to {PATHS_MAX}")]
    Addresses(usize),
    /// An address could not be bound.
    #[error("cannot listen on {addr}; check that it is this machine's and that its UDP port is free")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// A link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No path, or too many.
    #[error("{0} paths to dial; give 1 to {PATHS_MAX}")]
    Paths(usize),
    /// The label is too long.
    #[error("a label of {0} bytes; at most {LABEL_MAX}")]
    Label(usize),
    /// No path came up; each address with its last reason.
    #[error("no path to the peer came up:{}", list(.0))]
    Unreachable(Vec<PathFailure>),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// One path that did not come up.
#[derive(Clone, Debug)]
pub struct PathFailure {
    /// The peer's address.
    pub remote: SocketAddr,
    /// Why.
    pub reason: FailReason,
}

/// Why a path did not come up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailReason {
    /// Silence.
    #[error("no answer; check that the peer runs, the address, and that UDP passes the firewalls")]
    NoAnswer,
    /// The peer does not let our key in.
    #[error("the peer refused our key; add it to the peer's allow-list")]
    KeyRefused,
    /// The node at that address has another key.
    #[error("the node there is not the one expected (its key differs); check the address and the ticket")]
    WrongKey,
    /// Something else answers there.
    #[error("what answers there is no rhizomorph link; check the port")]
    NotALink,
    /// Another release.
    #[error("the versions differ ({0}); run the same release on both ends")]
    Version(String),
    /// The peer had another reason.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// This machine.
    #[error("this machine cannot send there ({0}); check the local address and the route")]
    Local(String),
    /// The peer lost this link's state.
    #[error("the peer was restarted and does not know this link; dial anew")]
    Forgotten,
    /// Anything else that QUIC reports.
    #[error("the connection failed: {0}")]
    Other(String),
}

impl FailReason {
    /// Whether repeating the dial cannot help while the peer stays as it is.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::KeyRefused | Self::WrongKey | Self::NotALink | Self::Version(_))
    }
}

fn list(failures: &[PathFailure]) -> String {
    failures.iter().map(|failure| format!(" [{}: {}]", failure.remote, failure.reason)).collect()
}
