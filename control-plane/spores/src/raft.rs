//! The Raft group: openraft's types, an in-memory log, and the state machine around [`crate::state`].
//!
//! Everything is in memory. A process that is restarted has lost its log and its vote, so it never comes back under its old
//! id: it enrols as a new member. That is why losing memory is safe: whoever has voted as a member either still remembers
//! it or is gone for ever.

pub mod log;
pub mod machine;

use std::net::SocketAddr;

use mycelium_ram_core::NodeId;
use openraft::{Config, SnapshotPolicy};
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::state::{Command, Outcome};

/// A Raft member: a random number per process start.
pub type RaftId = u64;

/// What Raft knows of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftNode {
    /// The node.
    pub key: NodeId,
    /// Where it listened when it became a member; the state has newer addresses.
    pub addr: SocketAddr,
    /// Its name.
    pub name: String,
}

impl Default for RaftNode {
    fn default() -> Self {
        Self { key: NodeId([0; 32]), addr: ([0, 0, 0, 0], 0).into(), name: String::new() }
    }
}

openraft::declare_raft_types!(
    /// Our choice of openraft's types.
    pub Types:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = RaftNode,
        SnapshotData = std::io::Cursor<Vec<u8>>,
);

/// A running Raft member.
pub type Raft = openraft::Raft<Types>;

/// Pace of the group, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Interval of the leader's heartbeats.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing waits at least this long before it asks for votes.
    pub election_min_ms: u64,
    /// And at most this long; also the leader's lease.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 50, election_min_ms: 150, election_max_ms: 300 }
    }
}

impl Timing {
    /// openraft's settings.
    ///
    /// # Errors
    /// [`BadTiming`] when the numbers contradict each other.
    pub fn config(self) -> Result<Config, BadTiming> {
        let config = Config {
            cluster_name: "mycelium".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: 2_000,
            max_payload_entries: limits::ENTRIES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(limits::LOG_ENTRIES),
            max_in_snapshot_log_to_keep: limits::LOG_KEPT,
            ..Config::default()
        };
        config.validate().map_err(|error| BadTiming(error.to_string()))
    }
}

/// A pace that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the group's timing contradicts itself: {0}; heartbeat < least wait < longest wait must hold")]
pub struct BadTiming(String);
