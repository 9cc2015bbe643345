//! What a link tells about its paths.

use std::net::SocketAddr;
use std::time::Instant;

use rhizomorph_proto::ids::PathId;

use crate::close::DownReason;

/// Whether a path is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// Heard; carries its share.
    Live,
    /// Connected but silent; carries nothing new.
    Silent,
    /// Not connected.
    Down,
}

/// One path as it is now. Counts are over all its connections so far.
#[derive(Clone, Debug)]
pub struct PathInfo {
    /// Its number.
    pub id: PathId,
    /// This end's address, where known.
    pub local: Option<SocketAddr>,
    /// The other end's address, where known.
    pub remote: Option<SocketAddr>,
    /// Whether it is in use.
    pub state: PathState,
    /// Why it is not, if it is not.
    pub down: Option<DownReason>,
    /// Smoothed round-trip time of the present connection, microseconds.
    pub rtt_us: Option<u64>,
    /// Bytes of UDP payload sent.
    pub bytes_sent: u64,
    /// Bytes of UDP payload received.
    pub bytes_received: u64,
    /// Packets sent and declared lost.
    pub packets_lost: u64,
    /// When anything was last received on it, to within the watch interval.
    pub last_heard: Option<Instant>,
    /// The dialer's count of attempts at the present connection.
    pub dials: u32,
}
