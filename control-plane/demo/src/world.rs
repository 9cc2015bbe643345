//! What a demo needs of the world it plays in, whichever kind of host that is made of.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use mycelium_ram::events::{Event, Stamped};

use crate::capture::Seen;
use crate::network::Chronicle;
use crate::options::Fault;
use crate::shell::ip;

/// How patient to be in a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Until the guest serves and is protected.
    pub(crate) start: Duration,
    /// For one reply, a takeover included.
    pub(crate) reply: Duration,
    /// The client's pause between requests.
    pub(crate) think: Duration,
    /// Shortest and longest time under load before a loss.
    pub(crate) before_loss: (Duration, Duration),
    /// Epochs that must have committed before a loss.
    pub(crate) epochs: u64,
    /// Requests that must be acknowledged before a loss and after the takeover.
    pub(crate) acks: u64,
    /// Watching after a takeover, at least.
    pub(crate) after: Duration,
}

impl Pace {
    /// For guests that run on this machine's own KVM.
    pub(crate) fn of_this_machine() -> Self {
        Self {
            start: Duration::from_secs(60),
            reply: Duration::from_secs(20),
            think: Duration::ZERO,
            before_loss: (Duration::from_secs(2), Duration::from_secs(4)),
            epochs: 110,
            acks: 550,
            after: Duration::from_secs(2),
        }
    }
}

/// Nodes, an arbiter, and the network between them and the client. The VM starts on the first node; as many losses follow
/// as leave one node.
pub(crate) trait World {
    /// The kind of KVM the guest runs on.
    fn kvm(&self) -> String;

    fn pace(&self) -> Pace;

    /// Where the guest serves.
    fn server(&self) -> SocketAddr;

    /// The nodes' names. Everywhere else a node is its place in this list.
    fn names(&self) -> &'static [&'static str];

    /// Events of a node since the last call, their `t_ns` on this machine's clock.
    fn events(&mut self, node: usize) -> Result<Vec<Stamped>>;

    /// What else has happened since the last call, for people: when, on CLOCK_BOOTTIME, nanoseconds, and what.
    fn news(&mut self) -> Vec<(u64, String)> {
        Vec::new()
    }

    /// Whether there is an arbiter after the loss of this node.
    fn decides_without(&self, _node: usize) -> bool {
        true
    }

    /// Has the node hold an epoch, in the phase the world was made with.
    fn hold_epoch(&mut self, _node: usize) -> Result<()> {
        anyhow::bail!("nothing is held here")
    }

    /// Strikes an active node. Returns when, on CLOCK_BOOTTIME, nanoseconds.
    fn lose(&mut self, node: usize, fault: Fault) -> Result<u64>;

    /// Undoes the fault, where it can be undone.
    fn revive(&mut self, node: usize, fault: Fault) -> Result<()>;

    /// Exit code of a node's process, once it has ended by itself.
    fn exit_of(&mut self, node: usize) -> Option<i32>;

    /// Bytes that have crossed the replication paths, all ways, by the interfaces' own counters. A node that is gone
    /// has taken its counters with it: what was seen last counts.
    fn wire_bytes(&mut self) -> u64;

    /// What a node has written of the guest's console.
    fn console(&self, node: usize) -> Vec<u8>;

    /// Ends the captures: what the guest's address sent from each node.
    fn captures(&mut self) -> Result<Vec<Vec<Seen>>>;

    /// The end of each node's log, for a report of what went wrong.
    fn logs(&self) -> String;

    /// What the nodes' daemons have said, where the nodes have any.
    fn chronicle(&self) -> Option<Chronicle> {
        None
    }
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

/// The end of a log, for people.
pub(crate) fn last_lines(log: &std::path::Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
