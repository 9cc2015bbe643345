//! Which nodes should vote. Pure.
//!
//! The group has one voter or three, never two: two tolerate no loss at all, and so lose the arbiter twice as often as
//! one alone.
//!
//! - **Three or more nodes alive**: three voters. Voters that are alive stay; the longest members fill up.
//! - **Two alive**: one voter, the node that more records list in sync. The other one runs those guests. When that one is
//!   lost, the voter is left with the replica, decides at once, and takes over. When the voter is lost, the guest's output
//!   waits until somebody decides again: the guest itself is not lost. On a tie nothing moves, and a leader stays.
//! - **One alive**: nothing to change, and nothing that could; unless the leader itself has left, who then hands over.
//!
//! Taking a dead voter out needs a majority of the *old* voters first (joint consensus), so it must be done while one more
//! loss has not happened yet. With three nodes A (active), B (in sync) and C:
//!
//! ```text
//!   {A, B, C}  --A lost-->  {B} or {C}  --B took over, C listed in sync-->  {C}  --B lost-->  C decides, and takes over
//! ```

use std::collections::{BTreeMap, BTreeSet};

use mycelium_ram_core::NodeId;
use mycelium_ram_core::record::Record;

use crate::limits;

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Nodes of the network heard from lately, with the unix second in which they joined.
    pub alive: &'a BTreeMap<NodeId, u64>,
    /// Those of them whose present process votes.
    pub voters: &'a BTreeSet<NodeId>,
    /// Who leads.
    pub leader: NodeId,
}

/// The voters there should be.
pub fn wanted<'a>(view: View<'_>, records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<NodeId> {
    match view.alive.len() {
        0 | 1 if view.voters.is_empty() => view.alive.keys().copied().collect(),
        0 | 1 => view.voters.clone(),
        2 => BTreeSet::from([sole(view, records)]),
        _ => three(view),
    }
}

fn three(view: View<'_>) -> BTreeSet<NodeId> {
    let mut order: Vec<_> =
        view.alive.iter().map(|(node, joined)| (rank(view, *node), *joined, *node)).collect();
    order.sort_unstable();
    order.into_iter().take(limits::VOTERS).map(|(_, _, node)| node).collect()
}

fn sole<'a>(view: View<'_>, records: impl IntoIterator<Item = &'a Record>) -> NodeId {
    let mut listings: BTreeMap<NodeId, usize> = BTreeMap::new();
    for listed in records.into_iter().flat_map(|record| &record.in_sync) {
        *listings.entry(listed.member.node).or_default() += 1;
    }
    let count = |node: &NodeId| listings.get(node).copied().unwrap_or_default();
    let best = view
        .alive
        .iter()
        .min_by_key(|(node, joined)| (std::cmp::Reverse(count(node)), rank(view, **node), **joined, **node));
    best.map_or(view.leader, |(node, _)| *node)
}

/// Present voters before others, the leader first of all: every move costs an election.
fn rank(view: View<'_>, node: NodeId) -> u8 {
    match (node == view.leader && view.voters.contains(&node), view.voters.contains(&node)) {
        (true, _) => 0,
        (_, true) => 1,
        _ => 2,
    }
}

/// One sentence on what the group survives now.
#[must_use]
pub fn survives(voters: usize, voters_alive: usize, alive: usize) -> String {
    match (voters, voters_alive) {
        (_, 0) => "No voter is alive: nothing is decided until an operator recovers the network.".to_owned(),
        (1, _) if alive <= 1 => {
            "One node alone decides: if it is lost, nothing is decided until it is back; its records are on its disk.".to_owned()
        }
        (1, _) => "One voter decides: the loss of any other node is survived; without the voter nothing is decided until it is back.".to_owned(),
        (n, a) if 2 * a <= n => format!("Only {a} of {n} voters are alive: nothing is decided until one more is back."),
        (n, a) if a < n => format!("{a} of {n} voters are alive: losing one more now would stop all decisions."),
        _ => "Any one node may be lost; the two that remain then shrink the group to one voter, and the loss of the other is survived too.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mycelium_ram_core::mode::Mode;
    use mycelium_ram_core::record::{Authority, Listed, LossPolicy};
    use mycelium_ram_core::{EpochId, Generation, Incarnation, Member, VmId};
    use proptest::prelude::*;

    use super::*;

    const A: u8 = 1;
    const B: u8 = 2;
    const C: u8 = 3;

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    fn set(nodes: &[u8]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(node).collect()
    }

    fn record(active: u8, in_sync: &[u8]) -> Record {
        let member = |n: u8| Member { node: node(n), incarnation: Incarnation(n.into()) };
        Record {
            vm: VmId::new("vm").unwrap(),
            version: 1,
            generation: Generation(1),
            active: member(active),
            in_sync: in_sync.iter().map(|n| Listed { member: member(*n), since: EpochId(0) }).collect(),
            policy: LossPolicy::Degrade,
            authority: Authority::Primary,
            takeover_epoch: None,
            pace: None,
            mode: Mode::Sync,
            recent_ops: Vec::new(),
        }
    }

    fn rule(alive: &[u8], voters: &[u8], leader: u8, records: &[Record]) -> BTreeSet<NodeId> {
        let alive = alive.iter().map(|n| (node(*n), u64::from(*n))).collect();
        wanted(View { alive: &alive, voters: &set(voters), leader: node(leader) }, records)
    }

    #[test]
    fn a_growing_network_has_one_voter_then_three() {
        assert_eq!(rule(&[A], &[A], A, &[]), set(&[A]));
        assert_eq!(rule(&[A, B], &[A], A, &[]), set(&[A]));
        assert_eq!(rule(&[A, B, C], &[A], A, &[]), set(&[A, B, C]));
        assert_eq!(rule(&[A, B, C, 4], &[A, B, C], B, &[]), set(&[A, B, C]));
    }

    #[test]
    fn the_vote_goes_to_the_replica_not_to_the_active() {
        assert_eq!(rule(&[A, B], &[A], A, &[record(A, &[B])]), set(&[B]));
        assert_eq!(rule(&[A, B], &[B], B, &[record(A, &[B])]), set(&[B]));
        let both = [record(A, &[B]), record(B, &[A])];
        assert_eq!(rule(&[A, B], &[A], A, &both), set(&[A]), "a tie moves nothing");
        assert_eq!(rule(&[A, B], &[B], B, &both), set(&[B]), "a tie moves nothing");
    }

    #[test]
    fn three_nodes_lose_one_after_the_other() {
        let before = [record(A, &[B])];
        assert_eq!(rule(&[B, C], &[B, C], C, &before), set(&[B]), "A is lost: the replica's node decides");
        assert_eq!(rule(&[B, C], &[B], B, &[record(B, &[])]), set(&[B]), "taken over, not protected yet");
        assert_eq!(rule(&[B, C], &[B], B, &[record(B, &[C])]), set(&[C]), "protected: the vote moves");
        assert_eq!(rule(&[C], &[C], C, &[record(B, &[C])]), set(&[C]), "B is lost: C decides");
        assert_eq!(rule(&[B], &[], A, &[]), set(&[B]), "A led alone and leaves");
    }

    #[test]
    fn a_lost_voter_is_replaced_by_a_fourth_node() {
        assert_eq!(rule(&[A, C, 4], &[A, C], C, &[]), set(&[A, C, 4]));
        assert_eq!(rule(&[A, B, C], &[B], B, &[record(B, &[C])]), set(&[A, B, C]), "A is back");
    }

    proptest! {
        #[test]
        fn one_or_three_and_alive_and_settled(
            alive in prop::collection::btree_set(1u8..8, 2..7),
            voted in prop::collection::btree_set(1u8..8, 1..4),
            listed in prop::collection::vec((1u8..8, 1u8..8), 0..5),
        ) {
            let alive: Vec<_> = alive.into_iter().collect();
            let voters: Vec<_> = voted.into_iter().filter(|n| alive.contains(n)).collect();
            let records: Vec<_> = listed.iter().map(|(a, b)| record(*a, &[*b])).collect();
            let leader = *voters.first().unwrap_or(&alive[0]);
            let first = rule(&alive, &voters, leader, &records);
            prop_assert!(first.len() == 1 || first.len() == 3);
            prop_assert!(first.iter().all(|n| alive.contains(&n.0[0])));
            let now: Vec<_> = first.iter().map(|n| n.0[0]).collect();
            let leads = if now.contains(&leader) { leader } else { now[0] };
            prop_assert_eq!(rule(&alive, &now, leads, &records), first, "it comes to rest");
        }
    }
}
