//! Frames between nodes: one request and one answer a stream.
//!
//! JSON, because records and reports are JSON on disk and to the CLI already, a capture can be read, and a group of three
//! exchanges some dozens of small frames a second. The first byte of a frame tells the network's own ([`OWN`]) from the
//! daemon's ([`DAEMON`]), which are bytes we do not look into.

use std::net::SocketAddr;

use mycelium_identity::{KnownMember, NetworkId};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{NodeId, VmId};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{SnapshotMeta, Vote};
use serde::{Deserialize, Serialize};

use crate::raft::{RaftId, RaftNode, Types};
use crate::report::{NodeReport, Reported};
use crate::state::{Command, Enrolment, Outcome};
use crate::status::Status;

/// First byte of a frame in JSON.
pub(crate) const OWN: u8 = 0;
/// First byte of a daemon's request, and of its answer.
pub(crate) const DAEMON: u8 = 1;
/// First byte of an answer that is an error's text.
pub(crate) const FAILED: u8 = 2;

/// What a member asks of another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// For the Raft member `to` of `group`, and no other: its node may have been restarted since.
    Raft { group: u64, to: RaftId, rpc: RaftRpc },
    /// Who leads, as far as you know?
    Leader,
    /// Apply this. Leader only.
    Command(Command),
    /// I am back as another process. Any member passes it on.
    Enrol(Enrolment),
    /// Decide about a record. Leader only.
    Decide { vm: VmId, request: Request },
    /// How I am. Leader only.
    Report { group: u64, raft_id: RaftId, report: NodeReport },
    /// How is everybody? Leader only.
    Reports,
    /// How is the group? Leader only.
    Status,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Say {
    Raft(RaftSay),
    Leader {
        group: u64,
        leader: Option<NodeId>,
    },
    Outcome(Outcome),
    Welcome(Welcome),
    Reply(Reply),
    /// The report was noted; `known` is whether this process is the one enrolled.
    Noted {
        known: Known,
    },
    Reports(Vec<(NodeId, Reported)>),
    Status(Box<Status>),
    /// Ask the leader.
    NotLeader,
    /// It could not be dealt with; nothing is decided.
    Trouble(String),
}

/// What a leader thinks of one who reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Known {
    /// This process is enrolled.
    Enrolled,
    /// The node is known, as another process or in another group: enrol.
    Stale,
    /// The node is not in the network any more.
    Removed,
}

/// openraft's requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum RaftRpc {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<RaftId>),
    /// The whole state at once: it is small. `state` is JSON already.
    Snapshot {
        vote: Vote<RaftId>,
        meta: SnapshotMeta<RaftId, RaftNode>,
        state: String,
    },
}

/// openraft's answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum RaftSay {
    Append(AppendEntriesResponse<RaftId>),
    Vote(VoteResponse<RaftId>),
    Snapshot(Vote<RaftId>),
}

/// What a node that is let in needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) network: NetworkId,
    pub(crate) group: u64,
    pub(crate) members: Vec<KnownMember>,
}

/// What a stranger with an invitation asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JoinRequest {
    pub(crate) invitation: String,
    pub(crate) name: String,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) raft_id: RaftId,
    /// The stranger's wall clock, nanoseconds since 1970.
    pub(crate) wall_ns: u64,
}

/// The answer to a stranger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum JoinReply {
    Welcome(Welcome),
    Refused(String),
}

/// Encodes a frame of our own.
pub(crate) fn encode<T: Serialize>(frame: &T) -> Vec<u8> {
    let mut bytes = vec![OWN];
    if let Err(error) = serde_json::to_writer(&mut bytes, frame) {
        // Only a map with keys that are no strings could do this, and no frame has one.
        unreachable!("a frame does not encode: {error}");
    }
    bytes
}

/// Decodes a frame of our own; the error is for the other end to read.
pub(crate) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&OWN, json)) => {
            serde_json::from_slice(json).map_err(|error| format!("not a valid frame: {error}"))
        }
        _ => Err("not a frame of this protocol".to_owned()),
    }
}

/// Entry point for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn fuzz_frames(data: &[u8]) {
    let _ = decode::<Ask>(data);
    let _ = decode::<Say>(data);
    let _ = decode::<JoinRequest>(data);
    let _ = decode::<JoinReply>(data);
}
