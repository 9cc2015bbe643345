//! What each node tells the leader twice a second, and what the leader makes of it. Pure: the time is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use mycelium_ram_core::NodeId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::raft::RaftId;
use crate::state::NodeEntry;

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Bytes of memory that a new guest could have.
    pub free_memory_bytes: u64,
    /// Bytes of memory.
    pub total_memory_bytes: u64,
    /// Processors.
    pub vcpus: u32,
    /// Whether /dev/kvm can be used.
    pub kvm: bool,
    /// The node's wall clock when it was sent, nanoseconds since 1970. Filled in by the spore.
    pub wall_ns: u64,
    /// What the daemon adds; the spore does not look into it.
    pub extra: serde_json::Value,
}

/// A report as the leader keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// What was said.
    pub report: NodeReport,
    /// Milliseconds since it came.
    pub age_ms: u64,
    /// How far the node's clock was ahead of the leader's when it came, nanoseconds.
    pub skew_ns: i64,
}

/// What the leader has heard since it leads.
#[derive(Debug)]
pub(crate) struct Pulse {
    since: Instant,
    heard: BTreeMap<NodeId, Heard>,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    raft_id: RaftId,
    skew_ns: i64,
    report: NodeReport,
}

impl Pulse {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, heard: BTreeMap::new() }
    }

    /// Notes a report; true when this process was not heard before.
    pub(crate) fn note(
        &mut self,
        node: NodeId,
        raft_id: RaftId,
        report: NodeReport,
        now: Instant,
        wall_ns: u64,
    ) -> bool {
        let skew_ns = i64::try_from(i128::from(report.wall_ns) - i128::from(wall_ns)).unwrap_or(i64::MAX);
        let before = self.heard.insert(node, Heard { at: now, raft_id, skew_ns, report });
        before.is_none_or(|b| b.raft_id != raft_id)
    }

    /// Whether a node's present process was heard within `patience`. Voters have that long from the moment this node leads.
    pub(crate) fn alive(
        &self,
        node: NodeId,
        entry: &NodeEntry,
        votes: bool,
        now: Instant,
        patience: Duration,
    ) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < patience;
        let heard = self.heard.get(&node).filter(|h| Some(h.raft_id) == entry.raft_id);
        heard.is_some_and(|h| recent(h.at)) || (votes && recent(self.since))
    }

    /// Forgets who is not in the network.
    pub(crate) fn keep(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.heard.retain(|node, _| keep(node));
    }

    pub(crate) fn reports(&self, now: Instant) -> Vec<(NodeId, Reported)> {
        let one = |(node, heard): (&NodeId, &Heard)| {
            let age = now.saturating_duration_since(heard.at).as_millis();
            let age_ms = u64::try_from(age).unwrap_or(u64::MAX);
            (*node, Reported { report: heard.report.clone(), age_ms, skew_ns: heard.skew_ns })
        };
        self.heard.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_dead_and_an_old_process_does_not_speak_for_a_new_one() {
        let (node, patience) = (NodeId([1; 32]), Duration::from_secs(2));
        let entry =
            |raft_id| NodeEntry { name: "n".into(), addrs: vec![], raft_id: Some(raft_id), joined_at: 0 };
        let begun = Instant::now();
        let mut pulse = Pulse::new(begun);
        assert!(pulse.alive(node, &entry(1), true, begun, patience), "a voter has its grace");
        assert!(!pulse.alive(node, &entry(1), false, begun, patience), "others must speak first");
        let report = NodeReport { wall_ns: 5, ..NodeReport::default() };
        assert!(pulse.note(node, 1, report.clone(), begun, 7));
        assert!(!pulse.note(node, 1, report, begun, 7));
        assert_eq!(pulse.reports(begun)[0].1.skew_ns, -2);
        assert!(pulse.alive(node, &entry(1), false, begun, patience));
        assert!(!pulse.alive(node, &entry(2), false, begun, patience));
        assert!(!pulse.alive(node, &entry(1), true, begun + patience, patience));
    }
}
