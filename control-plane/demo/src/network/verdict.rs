//! What a demo of a network proves beyond one takeover.

use mycelium_ram::events::{Event, Stamped};
use serde::Serialize;

use super::chronicle::Chronicle;
use crate::clocks::GuestClocks;
use crate::takeover::{FailoverMs, Loss, Takeover, ms, resumed, when};
use crate::verdict::Evidence;

/// The network's part of the verdict.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkVerdict {
    /// All nodes.
    pub nodes: Vec<NodeVerdict>,
    /// How the VM came to a new replica after the first loss.
    pub reprotected: Reprotected,
    /// The takeover after the second loss.
    pub second_takeover: SecondTakeover,
}

/// A node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeVerdict {
    /// Its name in the network.
    pub name: String,
    /// Its public key, hexadecimal.
    pub key: String,
    /// Whether it has had a vote.
    pub voted: bool,
    /// When it was lost: milliseconds from the demo's beginning; none for the one that is left.
    pub lost_at_ms: Option<f64>,
    /// What it was for the VM, in the order of time: replica, active.
    pub roles: Vec<&'static str>,
}

/// The new replica.
#[derive(Clone, Debug, Serialize)]
pub struct Reprotected {
    /// Name of its node.
    pub node: String,
    /// Milliseconds from the loss until the VM was protected again.
    pub after_ms: f64,
    /// Milliseconds from the loss until the replica's node had the vote, so that the next loss could be survived; as the
    /// daemons said when they were asked.
    pub vote_after_ms: f64,
    /// Longest silence any connection saw while the guest was copied, milliseconds.
    pub client_gap_ms: f64,
    /// The daemons' reason for this node.
    pub why: String,
}

/// The second takeover.
#[derive(Clone, Debug, Serialize)]
pub struct SecondTakeover {
    /// The node that was lost.
    pub from: String,
    /// The node that took over.
    pub to: String,
    /// The VM's generation since.
    pub generation: u64,
    /// Epochs committed by the lost node.
    pub epochs_committed: u64,
    /// Requests acknowledged since.
    pub acked_ops: u64,
    /// Connections that waited for a reply at the moment of the loss.
    pub outstanding_at_loss: u64,
    /// The guest's clocks over this takeover.
    pub guest_clocks: GuestClocks,
    /// How long it took.
    pub failover_ms: FailoverMs,
    /// Frames with the guest's address that left the lost node after the takeover.
    pub stale_frames: usize,
}

impl NetworkVerdict {
    /// The network's part, where there was a network and two losses.
    pub(crate) fn of(evidence: &Evidence) -> Option<Self> {
        let chronicle = evidence.chronicle.as_ref()?;
        let (first, second) = (Takeover::of(evidence, 0)?, Takeover::of(evidence, 1)?);
        let name = |node: usize| evidence.names[node].to_owned();
        Some(Self {
            nodes: (0..evidence.names.len()).map(|n| NodeVerdict::of(evidence, chronicle, n)).collect(),
            reprotected: Reprotected::of(evidence, chronicle, &first, second.loss),
            second_takeover: SecondTakeover {
                from: name(second.loss.from),
                to: name(second.loss.to),
                generation: second.generation(),
                epochs_committed: second.last_stats().committed,
                acked_ops: second.acked(),
                outstanding_at_loss: second.loss.outstanding,
                guest_clocks: second.guest_clocks(),
                failover_ms: second.failover(),
                stale_frames: second.stale_frames(),
            },
        })
    }

    /// The rows of the verdict that say who was there.
    pub(crate) fn nodes_in_words(&self, row: &mut impl FnMut(&str, String)) {
        for (n, node) in self.nodes.iter().enumerate() {
            let lost = node.lost_at_ms.map_or_else(
                || ", is left".to_owned(),
                |at| format!(", lost {:.1} s after the beginning", at / 1e3),
            );
            let key: String = node.key.chars().take(8).collect();
            let voted = if node.voted { "" } else { ", never had a vote" };
            let text = format!("{} ({key}): {}{lost}{voted}", node.name, node.roles.join(", then "));
            row(if n == 0 { "nodes" } else { "" }, text);
        }
    }

    /// The rows of the verdict after those of the first takeover.
    pub(crate) fn rest_in_words(&self, row: &mut impl FnMut(&str, String)) {
        let r = &self.reprotected;
        row(
            "protected again",
            format!(
                "by node {} {:.1} s after the loss, with the vote after {:.1} s; client's longest silence meanwhile {:.1} ms",
                r.node,
                r.after_ms / 1e3,
                r.vote_after_ms / 1e3,
                r.client_gap_ms
            ),
        );
        row("", format!("because {}", r.why));
        let s = &self.second_takeover;
        s.failover_ms.in_words("second takeover", row);
    }
}

impl NodeVerdict {
    fn of(evidence: &Evidence, chronicle: &Chronicle, node: usize) -> Self {
        let loss = evidence.losses.iter().find(|loss| loss.from == node);
        Self {
            name: evidence.names[node].to_owned(),
            key: chronicle.keys[node].clone(),
            voted: chronicle.voted[node],
            lost_at_ms: loss.map(|loss| ms(Some(evidence.began), Some(loss.at))),
            roles: roles(&evidence.nodes[node]),
        }
    }
}

fn roles(timeline: &[Stamped]) -> Vec<&'static str> {
    let mut roles: Vec<_> = timeline
        .iter()
        .filter_map(|e| match &e.event {
            Event::Started { role, .. } if role == "passive" => Some("replica"),
            Event::Started { .. } | Event::Resumed { .. } => Some("active"),
            _ => None,
        })
        .collect();
    roles.dedup();
    roles
}

impl Reprotected {
    fn of(evidence: &Evidence, chronicle: &Chronicle, first: &Takeover<'_>, second: Loss) -> Self {
        let copied = first.copied_again();
        let protected = protected_again(first, &evidence.nodes[second.to]);
        let node = evidence.names[second.to].to_owned();
        let vote = chronicle.voters.iter().find(|(at, who)| *at > first.loss.at && *who == [node.clone()]);
        let placements = chronicle.placements.iter().rev();
        let why =
            placements.filter(|p| p.by == second.from && p.replica == node).map(|p| p.why.clone()).next();
        Self {
            after_ms: ms(Some(first.loss.at), protected),
            vote_after_ms: ms(Some(first.loss.at), vote.map(|(at, _)| *at)),
            client_gap_ms: copied.zip(protected).map_or(f64::NAN, |(copied, protected)| {
                evidence.longest_silence(|from, _| from >= copied && from < protected)
            }),
            why: why.unwrap_or_default(),
            node,
        }
    }
}

/// When the new active had a replica again, and the replica knew it.
fn protected_again(first: &Takeover<'_>, replica: &[Stamped]) -> Option<u64> {
    let resumed = resumed(first.winner())?;
    let protected = first
        .winner()
        .iter()
        .find(|e| e.t_ns > resumed && matches!(e.event, Event::Protection { protected: true, .. }))?;
    let listed = when(replica, |e| matches!(e, Event::Listed { listed: true }))?;
    Some(protected.t_ns.max(listed))
}
