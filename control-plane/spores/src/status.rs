//! What an operator wants to know of the group.

use std::net::SocketAddr;

use mycelium_identity::NetworkId;
use mycelium_ram_core::NodeId;
use serde::{Deserialize, Serialize};

/// The group as its leader sees it, or as this node does while there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Which network; none until this node has heard its state.
    pub network: Option<NetworkId>,
    /// Whose view this is.
    pub seen_by: NodeId,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// All nodes of the network.
    pub members: Vec<MemberStatus>,
    /// How many arbiter records are kept.
    pub records: usize,
    /// One sentence: which losses are survived now.
    pub survives: String,
}

/// One node in a [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Which.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it was heard lately; unknown without a leader.
    pub alive: Option<bool>,
    /// Milliseconds since its last report to the leader.
    pub heard_ms: Option<u64>,
    /// Milliseconds by which its clock is ahead of the leader's.
    pub skew_ms: Option<i64>,
}

impl Status {
    /// The nodes that vote.
    #[must_use]
    pub fn voters(&self) -> Vec<NodeId> {
        self.members.iter().filter(|m| m.votes).map(|m| m.node).collect()
    }
}
