//! What a demo needs of the world it plays in, whichever kind of host that is made of.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use mycelium_ram::events::{Event, Stamped};

use crate::capture::Seen;
use crate::options::Fault;
use crate::shell::ip;

/// The node the VM starts on, and the one that holds the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// How patient to be in a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Until the guest serves and is protected.
    pub(crate) start: Duration,
    /// For one reply, a takeover included.
    pub(crate) reply: Duration,
    /// The client's pause between requests.
    pub(crate) think: Duration,
    /// Shortest and longest time under load before the loss.
    pub(crate) before_loss: (Duration, Duration),
    /// Epochs that must have committed before the loss.
    pub(crate) epochs: u64,
    /// Requests that must be acknowledged before the loss and after the takeover.
    pub(crate) acks: u64,
    /// Watching after the takeover, at least.
    pub(crate) after: Duration,
}

/// Two nodes, an arbiter, and the network between them and the client.
pub(crate) trait World {
    /// The kind of KVM the guest runs on.
    fn kvm(&self) -> String;

    fn pace(&self) -> Pace;

    /// Where the guest serves.
    fn server(&self) -> SocketAddr;

    /// Events of a node since the last call, their `t_ns` on this machine's clock.
    fn events(&mut self, side: Side) -> Result<Vec<Stamped>>;

    /// Does the fault to node A. Returns when, on CLOCK_MONOTONIC, nanoseconds.
    fn lose(&mut self, fault: Fault) -> Result<u64>;

    /// Undoes the fault, where it can be undone.
    fn revive(&mut self, fault: Fault) -> Result<()>;

    /// Exit code of node A's process, once it has ended by itself.
    fn exit_of_a(&mut self) -> Option<i32>;

    /// Bytes that have crossed the replication paths, both ways, by the interfaces' own counters. A node that is gone
    /// has taken its counters with it: what was seen last counts.
    fn wire_bytes(&mut self) -> u64;

    /// What a node has written of the guest's console.
    fn console(&self, side: Side) -> Vec<u8>;

    /// Ends the captures: what the guest's address sent from each node.
    fn captures(&mut self) -> Result<[Vec<Seen>; 2]>;

    /// The end of each node's log, for a report of what went wrong.
    fn logs(&self) -> String;
}

/// An event with its times on another clock.
pub(crate) fn on_our_clock(mut stamped: Stamped, ours: impl Fn(u64) -> u64) -> Stamped {
    stamped.t_ns = ours(stamped.t_ns);
    if let Event::FirstOutput { at_ns } = &mut stamped.event {
        *at_ns = ours(*at_ns);
    }
    stamped
}

/// Bytes a node has sent through a cable: what the cable's outer end has received.
pub(crate) fn sent_by(cable: &str) -> u64 {
    let shown = ip(&format!("-s -j link show dev {cable}")).unwrap_or_default();
    let parsed: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
    parsed.pointer("/0/stats64/rx/bytes").and_then(serde_json::Value::as_u64).unwrap_or(0)
}
