//! Every bound of the daemon with its unit and its reason.

use std::time::Duration;

/// VMs one node keeps; each has a task and a process.
pub const VMS: usize = 256;
/// Bytes of a VM's spec; one is below 2 KiB.
pub const SPEC_BYTES: usize = 64 << 10;
/// A VMM beyond its guest's RAM, bytes: measured below 10 MB, staging aside, which may take one copy of what changes.
pub const VMM_OVERHEAD_BYTES: u64 = 64 << 20;
/// Bytes of one disk of a replica: 16 TiB, the largest file of ext4 with its usual blocks.
pub const DISK_BYTES: u64 = 16 << 40;
/// Interval at which a keeper looks at its VM without being told of a change.
pub const LOOK: Duration = Duration::from_millis(250);
/// A replica that is neither in sync nor being copied to for this long is given up, and another node is looked for.
pub const REPLICA_PATIENCE: Duration = Duration::from_secs(2);
/// A node that failed as a replica's place is not asked again for this long: a daemon's restart takes less, and a VM without
/// another place is unprotected meanwhile.
pub const AVOID: Duration = Duration::from_secs(3);
/// A process has this long from its start until it answers; loading its kernel is the largest part.
pub const PROCESS_START: Duration = Duration::from_secs(30);
/// A process that was asked to end is killed after this.
pub const PROCESS_STOP: Duration = Duration::from_secs(10);
/// Interval of looks at whether it answers: there is nothing to wait on before its socket is there.
pub const PROCESS_LOOK: Duration = Duration::from_millis(5);
/// A passive nobody has come for ends after this: its active's daemon died between asking for it and using it.
pub const ORPHAN_S: u64 = 30;
/// Asking another daemon to start a passive, which touches all of the guest's memory first.
pub const PEER: Duration = Duration::from_secs(60);
/// A pod waits this long for its group's state to become clear: a takeover, or an election of the arbiter, takes less.
pub const GROUP_PATIENCE: Duration = Duration::from_secs(10);
/// A process that an earlier daemon started has this long to answer before the daemon goes on without its answer.
pub const ADOPT: Duration = Duration::from_secs(2);
/// Asking another daemon for a passive that runs already.
pub const PEER_QUICK: Duration = Duration::from_secs(5);
/// Asking another daemon what it has; it looks into its own memory only.
pub const QUESTION: Duration = Duration::from_secs(1);
/// Interval of the node's report to the network.
pub const REPORT: Duration = Duration::from_millis(500);
/// Longest validity of an invitation that can be asked for, seconds: a day.
pub const INVITATION_S: u64 = 24 * 3600;
/// Connections and streams of the daemon's API.
pub const API_STREAMS: u32 = 64;
/// Last words of a process that failed, bytes: they go into the error.
pub const LAST_WORDS_BYTES: u64 = 2048;
/// An address is free again this long after a failed attempt to enter a network, at the latest.
pub const LET_GO: Duration = Duration::from_secs(3);
