//! Why connections and links end: the codes on the wire, and what the application is told.

use std::fmt;
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};

/// The reason one connection is closed, as an application error code of QUIC.
///
/// None is 0: that is what quinn says by itself when a connection is merely dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseCode {
    /// The whole link was closed by its application.
    LinkClosed = 1,
    /// A newer connection took over this path.
    Replaced = 2,
    /// The hello did not decode.
    Malformed = 3,
    /// Another protocol version.
    Version = 4,
    /// Too many links or connections of this peer.
    Limit = 5,
    /// A rejoin of a link this listener does not know.
    UnknownLink = 6,
    /// A dial older than the one in use.
    StaleAttempt = 7,
    /// A rule of the link was broken after the hello.
    Violation = 8,
    /// No hello in time.
    Late = 9,
}

impl CloseCode {
    const ALL: [Self; 9] = [
        Self::LinkClosed,
        Self::Replaced,
        Self::Malformed,
        Self::Version,
        Self::Limit,
        Self::UnknownLink,
        Self::StaleAttempt,
        Self::Violation,
        Self::Late,
    ];

    pub(crate) fn close(self, connection: &Connection, reason: &str) {
        connection.close(VarInt::from_u32(self as u32), reason.as_bytes());
    }

    /// The peer's reason and its text, when it was the peer's application that closed.
    pub(crate) fn of(error: &ConnectionError) -> Option<(Self, String)> {
        let ConnectionError::ApplicationClosed(close) = error else { return None };
        let code = u64::from(close.error_code);
        let code = Self::ALL.into_iter().find(|known| *known as u64 == code)?;
        let text: String = String::from_utf8_lossy(&close.reason).chars().take(200).collect();
        Some((code, text))
    }
}

/// Codes on single streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamCode {
    /// The receiver has this stripe already.
    Duplicate = 1,
    /// The sender takes another path.
    Recalled = 2,
}

impl StreamCode {
    pub(crate) fn value(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Why a link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// This end closed or dropped it.
    Local,
    /// The other end closed or dropped it.
    Remote,
    /// The other end's process is a new one: what it had received is gone with the old one. Dial anew.
    PeerRestarted,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "closed at this end",
            Self::Remote => "closed at the other end",
            Self::PeerRestarted => "the other end was restarted",
        })
    }
}

/// Why a path is not in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// Nothing was heard on it for so long. It is still listened to.
    Silent(Duration),
    /// Its connection ended; the text says how.
    Lost(String),
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(silence) => write!(f, "silent for {} ms", silence.as_millis()),
            Self::Lost(how) => f.write_str(how),
        }
    }
}
