//! Why a frame was refused.

use std::fmt;

use super::VERSION;

/// Which kind of frame a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame of a connection.
    Hello,
    /// Its answer.
    Welcome,
    /// Head of a stripe.
    Stripe,
    /// A QUIC datagram.
    Datagram,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hello => "hello",
            Self::Welcome => "welcome",
            Self::Stripe => "stripe",
            Self::Datagram => "datagram",
        })
    }
}

/// A frame that was not taken. The peer built it wrong, or is no rhizomorph link: QUIC's own checks exclude damage
/// on the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame says or needs.
    #[error(
        "{0} frame ends too early; the peer does not speak this protocol, check that both ends are the same release"
    )]
    Truncated(Frame),
    /// Bytes after the end.
    #[error("{0} frame has {1} bytes after its end; check that both ends are the same release")]
    Trailing(Frame, usize),
    /// Not one of our frames at all.
    #[error(
        "{0} frame does not begin with our magic number; the peer is not a rhizomorph link, check address and port"
    )]
    Magic(Frame),
    /// Another protocol version.
    #[error("{0} frame has version {1}, this end speaks {VERSION}; run the same release on both ends")]
    Version(Frame, u16),
    /// A number outside its bounds.
    #[error(
        "{frame} frame has {field} {value}, allowed is {allowed}; check that both ends are the same release"
    )]
    Field {
        /// The frame.
        frame: Frame,
        /// Name of the field.
        field: &'static str,
        /// What it held.
        value: u64,
        /// What it may hold.
        allowed: &'static str,
    },
}

impl FrameError {
    pub(super) fn field(
        frame: Frame,
        field: &'static str,
        value: impl Into<u64>,
        allowed: &'static str,
    ) -> Self {
        Self::Field { frame, field, value: value.into(), allowed }
    }
}
