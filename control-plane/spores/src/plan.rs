//! The leader's next step towards the membership there should be. Pure: one step at a time, each from what is then so.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_ram_core::NodeId;
use openraft::Membership;

use crate::limits;
use crate::raft::{RaftId, RaftNode};
use crate::state::NetworkState;
use crate::voters::{View, wanted};

/// What the leader does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A node's present process is no member yet.
    Add(RaftId, RaftNode),
    /// These should vote. Who no longer does stays as a learner.
    Vote(BTreeSet<RaftId>),
    /// These are processes that are gone, or nodes that left.
    Drop(BTreeSet<RaftId>),
}

/// What the leader sees.
#[derive(Debug)]
pub(crate) struct Sight<'a> {
    pub(crate) me: NodeId,
    pub(crate) state: &'a NetworkState,
    pub(crate) membership: &'a Membership<RaftId, RaftNode>,
    /// Nodes heard lately.
    pub(crate) alive: &'a BTreeSet<NodeId>,
    /// Index up to which each member's log is known to equal ours.
    pub(crate) matched: &'a BTreeMap<RaftId, u64>,
    /// Index of our newest entry.
    pub(crate) last: u64,
}

/// The next step, or none when all is as it should be.
pub(crate) fn next(sight: &Sight<'_>) -> Option<Step> {
    add(sight).or_else(|| vote(sight)).or_else(|| drop_gone(sight))
}

fn add(sight: &Sight<'_>) -> Option<Step> {
    sight.state.nodes.iter().find_map(|(key, entry)| {
        let id = entry.raft_id.filter(|id| sight.membership.get_node(id).is_none())?;
        let addr = *entry.addrs.first()?;
        Some(Step::Add(id, RaftNode { key: *key, addr, name: entry.name.clone() }))
    })
}

fn vote(sight: &Sight<'_>) -> Option<Step> {
    let voting: BTreeSet<RaftId> = sight.membership.voter_ids().collect();
    let present = |node: &NodeId| sight.state.nodes.get(node).and_then(|entry| entry.raft_id);
    let known = |node: &NodeId| sight.state.nodes.contains_key(node) && sight.alive.contains(node);
    let alive: BTreeMap<NodeId, u64> =
        sight.state.nodes.iter().filter(|(n, _)| known(n)).map(|(n, e)| (*n, e.joined_at)).collect();
    let votes = |node: &NodeId| present(node).is_some_and(|id| voting.contains(&id));
    let voters: BTreeSet<NodeId> = alive.keys().copied().filter(votes).collect();
    let target =
        wanted(View { alive: &alive, voters: &voters, leader: sight.me }, sight.state.records.values());
    let ids: Option<BTreeSet<RaftId>> = target.iter().map(present).collect();
    let ids = ids.filter(|ids| !ids.is_empty() && ids.iter().all(|id| ready(sight, *id)))?;
    let settled = sight.membership.get_joint_config().len() == 1 && ids == voting;
    // Alone among dead voters, no change could be decided; asking for one would only leave it in the log.
    let stuck = alive.len() <= 1 && !voters.is_empty();
    (!settled && !stuck).then_some(Step::Vote(ids))
}

/// A learner far behind would hold up every decision once it votes.
fn ready(sight: &Sight<'_>, id: RaftId) -> bool {
    let mine = sight.state.nodes.get(&sight.me).and_then(|entry| entry.raft_id) == Some(id);
    let close = sight.matched.get(&id).is_some_and(|at| at + limits::LAG >= sight.last);
    mine || close
}

fn drop_gone(sight: &Sight<'_>) -> Option<Step> {
    let present: BTreeSet<RaftId> = sight.state.nodes.values().filter_map(|entry| entry.raft_id).collect();
    let voting: BTreeSet<RaftId> = sight.membership.voter_ids().collect();
    let gone = |id: &RaftId| !present.contains(id) && !voting.contains(id);
    let gone: BTreeSet<RaftId> = sight.membership.nodes().map(|(id, _)| *id).filter(gone).collect();
    (!gone.is_empty()).then_some(Step::Drop(gone))
}

#[cfg(test)]
mod tests {
    use mycelium_identity::NetworkId;

    use super::*;
    use crate::state::NodeEntry;

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    /// Node n is Raft member n, unless `raft_ids` says otherwise.
    fn plan(nodes: &[(u8, RaftId)], voters: &[RaftId], learners: &[RaftId], alive: &[u8]) -> Option<Step> {
        let entry = |n: u8, id| {
            let addrs = vec![([10, 0, 0, n], 1).into()];
            (node(n), NodeEntry { name: format!("n{n}"), addrs, raft_id: Some(id), joined_at: n.into() })
        };
        let nodes = nodes.iter().map(|(n, id)| entry(*n, *id)).collect();
        let state = NetworkState { network: Some(NetworkId([0; 32])), nodes, ..NetworkState::default() };
        let all: BTreeMap<RaftId, RaftNode> =
            voters.iter().chain(learners).map(|id| (*id, RaftNode::default())).collect();
        let membership = Membership::new(vec![voters.iter().copied().collect()], all.clone());
        let sight = Sight {
            me: node(1),
            state: &state,
            membership: &membership,
            alive: &alive.iter().copied().map(node).collect(),
            matched: &all.keys().map(|id| (*id, 100)).collect(),
            last: 100,
        };
        next(&sight)
    }

    fn votes(ids: &[RaftId]) -> Option<Step> {
        Some(Step::Vote(ids.iter().copied().collect()))
    }

    #[test]
    fn new_processes_become_learners_then_voters() {
        let three = [(1, 1), (2, 2), (3, 3)];
        assert!(matches!(plan(&three, &[1], &[2], &[1, 2, 3]), Some(Step::Add(3, _))));
        assert_eq!(plan(&three, &[1], &[2, 3], &[1, 2, 3]), votes(&[1, 2, 3]));
        assert_eq!(plan(&three, &[1, 2, 3], &[], &[1, 2, 3]), None);
    }

    #[test]
    fn a_dead_voter_is_taken_out_and_its_successor_put_in() {
        let three = [(1, 1), (2, 2), (3, 3)];
        assert_eq!(plan(&three, &[1, 2, 3], &[], &[1, 2]), votes(&[1]));
        let back = [(1, 1), (2, 2), (3, 33)];
        assert!(matches!(plan(&back, &[1, 2, 3], &[], &[1, 2]), Some(Step::Add(33, _))));
        assert_eq!(plan(&back, &[1, 2, 3], &[33], &[1, 2, 3]), votes(&[1, 2, 33]));
        assert_eq!(plan(&back, &[1, 2, 33], &[3], &[1, 2, 3]), Some(Step::Drop([3].into())));
    }

    #[test]
    fn a_lone_node_leaves_things_as_they_are() {
        assert_eq!(plan(&[(1, 1)], &[1], &[], &[1]), None);
        assert_eq!(plan(&[(1, 1), (2, 2)], &[1], &[2], &[1]), None);
        assert_eq!(plan(&[(1, 1), (2, 2), (3, 3)], &[1, 2, 3], &[], &[1]), None);
    }

    #[test]
    fn who_left_does_not_stay() {
        assert_eq!(plan(&[(2, 2)], &[1], &[2], &[1, 2]), votes(&[2]), "who leads alone hands over first");
        assert_eq!(plan(&[(1, 1)], &[1], &[2], &[1]), Some(Step::Drop([2].into())));
    }
}
