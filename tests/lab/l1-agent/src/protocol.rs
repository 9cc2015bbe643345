//! Orders to a lab host and what it says in return.
//!
//! Every [`Order`] gets exactly one [`Message::Reply`] with its id; output and exits of started processes arrive between
//! replies as they happen.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Number of a process started by an order; never reused within one boot, unlike a pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

/// An order with the number its reply carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the sender, unique within the channel.
    pub id: u64,
    /// What to do.
    pub order: Order,
}

/// What a lab host can be told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Start a process; answered by [`Answer::Started`].
    Spawn(SpawnOrder),
    /// Send a signal to a started process; a process that has already ended is not an error.
    Signal {
        /// Which process.
        process: ProcessId,
        /// Signal number as in signal(7).
        signal: i32,
    },
    /// Read part of a file; answered by [`Answer::FilePart`] with the bytes as blob.
    ReadFile {
        /// Absolute path.
        path: String,
        /// Where to begin, in bytes.
        offset: u64,
    },
    /// Write the blob into a file at an offset, creating it.
    WriteFile {
        /// Absolute path.
        path: String,
        /// Where to begin, in bytes; at 0 the file is emptied first.
        offset: u64,
        /// Permission bits of a newly created file.
        mode: u32,
    },
    /// Send datagrams to another agent's echo port until one returns; answered by [`Answer::Pong`].
    Ping {
        /// The other agent.
        to: Ipv4Addr,
        /// Time limit in milliseconds.
        timeout_ms: u64,
    },
    /// Delay, jitter and loss for frames leaving a NIC; replaces what was there.
    Netem {
        /// Name of the NIC.
        nic: String,
        /// What to do to its frames.
        shape: Netem,
    },
    /// Take a NIC up or down.
    Link {
        /// Name of the NIC.
        nic: String,
        /// Whether it shall be up.
        up: bool,
    },
    /// Create a VM and drop it, to see whether KVM works; answered by [`Answer::Kvm`].
    ProbeKvm,
    /// Switch the host off in order; the reply may or may not arrive.
    PowerOff,
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnOrder {
    /// The number the process gets; chosen by the sender so that no output can arrive before it is known.
    pub process: ProcessId,
    /// Program and arguments; the program as absolute path.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
}

/// Impairment of a NIC's outgoing frames (sch_netem).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netem {
    /// Constant delay in microseconds.
    pub delay_us: u64,
    /// Spread around the delay in microseconds.
    pub jitter_us: u64,
    /// Frames lost, in parts per million.
    pub loss_ppm: u32,
}

/// What comes back from a lab host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Said once: the boot plan is carried out and orders are welcome.
    Ready {
        /// Kernel release of the host.
        kernel: String,
        /// Milliseconds since the host's kernel started.
        uptime_ms: u64,
    },
    /// The outcome of an order.
    Reply {
        /// The order's id.
        id: u64,
        /// What it brought, or why it failed.
        outcome: Result<Answer, Refusal>,
    },
    /// A process wrote something; the bytes are the blob.
    Output {
        /// Which process.
        process: ProcessId,
        /// Where it wrote.
        stream: Stream,
    },
    /// A process ended and both its streams are closed; all of its output came before.
    Exited {
        /// Which process.
        process: ProcessId,
        /// How.
        status: ExitStatus,
    },
}

/// What a successful order brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing to tell.
    Done,
    /// The process runs.
    Started {
        /// Its pid inside the host.
        pid: u32,
    },
    /// The blob holds bytes of the file.
    FilePart {
        /// Whether the file ends with this part.
        last: bool,
    },
    /// The other agent answered.
    Pong {
        /// Round trip of the datagram that came back, in microseconds.
        rtt_us: u64,
        /// How many were sent until then.
        sent: u32,
    },
    /// KVM created a VM.
    Kvm {
        /// KVM_GET_API_VERSION.
        api_version: i32,
        /// KVM_CAP_DIRTY_LOG_RING: the largest ring in bytes, 0 without one.
        dirty_ring_bytes: i32,
    },
}

/// Why the host did not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct Refusal {
    /// The order's object: a path, a NIC, a program.
    pub what: String,
    /// The host's error.
    pub reason: String,
}

impl Refusal {
    /// A refusal from whatever the failed step reports.
    pub fn new(what: impl Into<String>, reason: impl ToString) -> Self {
        Self { what: what.into(), reason: reason.to_string() }
    }
}

/// Where a process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// Whether it ended with code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}
