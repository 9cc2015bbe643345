//! The operator: on which nodes he wants replicas.

use mycelium_ram_core::Member;

use super::{Event, Pid, World};
use crate::clock::MS;
use crate::effect::Input;
use crate::scenario::Who;

impl World {
    pub(super) fn wants(&self, member: Member) -> bool {
        !self.unwanted.iter().any(|node| self.nodes[*node].id == member.node)
    }

    pub(super) fn wanted(&mut self, node: usize) {
        if self.unwanted.remove(&node) {
            self.note(|| format!("the operator wants a replica on node {node}"));
        }
    }

    /// Gives up the replica on this process's node, or a listed one if this is none, and takes one on every other node
    /// instead. The active hears of the first; to whom it offers the VM follows from what is wanted, whoever is the active by
    /// then.
    pub(super) fn dismiss(&mut self, replica: Option<Pid>, back_after: Option<u64>) {
        let Some(active) = self.pick(Who::Active, None) else { return };
        let other = || self.pick(Who::Replica, None).filter(|pid| *pid != active);
        let Some(replica) = replica.filter(|pid| *pid != active).or_else(other) else { return };
        let node = self.procs[&replica].node;
        self.stats.dismissals += 1;
        self.note(|| format!("the operator wants process {replica} of node {node} no more"));
        self.unwanted.clear();
        self.unwanted.insert(node);
        if let Some(back_after) = back_after {
            self.after(back_after, Event::Wanted(node));
        }
        let delay = self.rng.below(2 * MS);
        self.after(delay, Event::Input(active, Input::Dismiss(self.nodes[node].id)));
    }

    /// After the heal somebody must be wanted, or the VM could not be protected.
    pub(super) fn want_somebody(&mut self) {
        let active = self.pick(Who::Active, None).map(|pid| self.procs[&pid].node);
        if (0..self.nodes.len()).all(|n| Some(n) == active || self.unwanted.contains(&n)) {
            self.unwanted.clear();
        }
    }
}
