//! Every bound of this crate with its unit and its reason.

use std::time::Duration;

/// Nodes in one network: each hears every change, and one leader hears each of them twice a second.
pub const NODES: usize = 64;
/// Records in one network: with the largest ones, state and snapshot stay below [`FRAME_BYTES`].
pub const RECORDS: usize = 4096;
/// Spent invitations kept until they expire; a network that admits more in a month has another problem.
pub const SPENT: usize = 1024;
/// Addresses of one node.
pub const ADDRESSES: usize = 8;
/// Voters: three survive the loss of one; five would cost latency for a second simultaneous loss.
pub const VOTERS: usize = 3;
/// Bytes of a frame between members: a snapshot of a full network.
pub const FRAME_BYTES: usize = 8 << 20;
/// Bytes of a daemon's own request or answer between nodes.
pub const REQUEST_BYTES: usize = FRAME_BYTES - 1;
/// Bytes of a frame from one who is not a member yet: an invitation and a node's entry.
pub const JOIN_BYTES: usize = 16 << 10;
/// Bytes of the opaque part of a node's report.
pub const EXTRA_BYTES: usize = 64 << 10;
/// Requests one connection may have open; a member has a few in flight for each protocol.
pub const STREAMS: u32 = 128;
/// Connections at a time: members and the endophytes on them.
pub const CONNECTIONS: usize = 1024;
/// Handshakes and joins at a time of those who are not known to be members yet; a restarted daemon is dialed by all.
pub const STRANGERS: usize = 64;
/// A stranger's connection is dropped after this long.
pub const STRANGER: Duration = Duration::from_secs(10);
/// A connection that says nothing for this long is dropped.
pub const IDLE: Duration = Duration::from_secs(3);
/// Interval of keep-alives, so that a dead connection is noticed before it is needed.
pub const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A cached connection on which nothing was answered for this long is dialed anew: the other process may be another one.
pub const STALE: Duration = Duration::from_millis(600);
/// Waiting for a handshake at one address before the next.
pub const CONNECT: Duration = Duration::from_millis(500);
/// A request of one node to another without an answer for this long is given up.
pub const ANSWER: Duration = Duration::from_secs(2);
/// A question about a record without an answer for this long is given up; the asker asks again. Below what the arbiter's
/// client waits.
pub const ARBITER: Duration = Duration::from_millis(900);
/// Time of one attempt at the leader within [`ARBITER`]: after it, there may be another leader.
pub const ATTEMPT: Duration = Duration::from_millis(400);
/// Pause before the next attempt when nobody leads.
pub const RETRY: Duration = Duration::from_millis(20);
/// Waiting for a change of the group's voters; the next tick tries again.
pub const RESHAPE: Duration = Duration::from_secs(2);
/// Waiting to be admitted and to hear the state, when joining.
pub const JOIN: Duration = Duration::from_secs(10);
/// Nanoseconds by which a joining node's clock may differ: guests' clocks may not step back at a takeover, and
/// invitations expire by them.
pub const CLOCK_SKEW_NS: u64 = 30_000_000_000;
/// Applied entries kept in the log besides the snapshot.
pub const LOG_KEPT: u64 = 256;
/// Entries after which the log is cut back to a snapshot.
pub const LOG_ENTRIES: u64 = 1024;
/// Entries in one message to a follower: with the largest command below [`FRAME_BYTES`] by far.
pub const ENTRIES: u64 = 64;
/// Entries a learner may lag behind and still be made a voter.
pub const LAG: u64 = 64;
/// Pause between lazy writes of the state to disk.
pub const LAZY_WRITE: Duration = Duration::from_millis(500);
