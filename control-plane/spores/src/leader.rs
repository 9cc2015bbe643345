//! What the leader does besides Raft: it answers members, and shapes the group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use mycelium_ram_core::record::Refusal;
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{NodeId, VmId};
use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};
use tokio::time::{Instant, timeout};

use crate::limits;
use crate::member::Member;
use crate::plan::{Sight, Step, next};
use crate::raft::RaftId;
use crate::report::{NodeReport, Pulse};
use crate::spore::Core;
use crate::state::{Command, NetworkState};
use crate::status::{MemberStatus, Status};
use crate::voters::survives;
use crate::wire::{Ask, Known, Say};

/// Looks at the group again and again, while this node leads.
pub(crate) async fn lead(core: Arc<Core>) {
    loop {
        let _ = timeout(core.reshape_every, core.nudge.notified()).await;
        let member = core.member();
        if !member.leads() {
            *core.pulse() = None;
            continue;
        }
        core.pulse().get_or_insert_with(|| Pulse::new(Instant::now()));
        // Several steps make one change; each starts from what the one before has brought about.
        for _ in 0..limits::NODES {
            let Some(step) = core.next_step(&member) else { break };
            tracing::info!(?step, "changing the group");
            match timeout(limits::RESHAPE, take(&member, step)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(%error, "the group was not changed; trying again");
                    break;
                }
                Err(_) => break,
            }
        }
    }
}

type Failed = RaftError<RaftId, ClientWriteError<RaftId, crate::raft::RaftNode>>;

async fn take(member: &Member, step: Step) -> Result<(), Failed> {
    let raft = &member.raft.0;
    match step {
        Step::Add(id, node) => raft.add_learner(id, node, false).await?,
        Step::Vote(ids) => raft.change_membership(ChangeMembers::ReplaceAllVoters(ids), true).await?,
        Step::Drop(ids) => raft.change_membership(ChangeMembers::RemoveNodes(ids), false).await?,
    };
    Ok(())
}

impl Core {
    fn pulse(&self) -> std::sync::MutexGuard<'_, Option<Pulse>> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_step(&self, member: &Member) -> Option<Step> {
        let metrics = member.raft.0.metrics().borrow().clone();
        let state = member.state.borrow().clone();
        if !member.leads() || state.network.is_none() {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let voting: BTreeSet<RaftId> = membership.voter_ids().collect();
        let matched: BTreeMap<RaftId, u64> = metrics
            .replication
            .iter()
            .flatten()
            .filter_map(|(id, matched)| matched.map(|log| (*id, log.index)))
            .collect();
        let alive = self.alive(&state, &voting);
        let last = metrics.last_log_index.unwrap_or_default();
        next(&Sight { me: self.me, state: &state, membership, alive: &alive, matched: &matched, last })
    }

    fn alive(&self, state: &NetworkState, voting: &BTreeSet<RaftId>) -> BTreeSet<NodeId> {
        let (now, mut pulse) = (Instant::now(), self.pulse());
        let Some(pulse) = pulse.as_mut() else { return BTreeSet::from([self.me]) };
        pulse.keep(|node| state.nodes.contains_key(node));
        let votes = |id: Option<RaftId>| id.is_some_and(|id| voting.contains(&id));
        let alive = state.nodes.iter().filter(|(node, entry)| {
            **node == self.me || pulse.alive(**node, entry, votes(entry.raft_id), now, self.liveness)
        });
        alive.map(|(node, _)| *node).collect()
    }

    /// Answers what only a leader can. Says [`Say::NotLeader`] when this node is none.
    pub(crate) async fn serve_as_leader(&self, from: NodeId, member: &Member, ask: Ask) -> Say {
        if !member.leads() {
            return Say::NotLeader;
        }
        match ask {
            Ask::Command(command) => write(member, command).await,
            Ask::Decide { vm, request: Request::Read } => read(member, &vm).await,
            Ask::Decide { vm, request: Request::Swap(swap) } if swap.vm != vm => {
                Say::Reply(Reply::Refused { op: swap.op, refusal: Refusal::NoRecord, record: None })
            }
            Ask::Decide { request: Request::Swap(swap), .. } => {
                match write(member, Command::Swap(swap)).await {
                    Say::Outcome(crate::state::Outcome::Swapped(reply)) => Say::Reply(reply),
                    other => other,
                }
            }
            Ask::Report { group, raft_id, report } => {
                Say::Noted { known: self.note(from, member, group, raft_id, report) }
            }
            Ask::Reports => {
                Say::Reports(self.pulse().as_ref().map_or_else(Vec::new, |p| p.reports(Instant::now())))
            }
            Ask::Status => Say::Status(Box::new(self.own_status())),
            Ask::Raft { .. } | Ask::Leader | Ask::Enrol(_) => {
                Say::Trouble("this is not for the leader".to_owned())
            }
        }
    }

    fn note(&self, from: NodeId, member: &Member, group: u64, raft_id: RaftId, report: NodeReport) -> Known {
        let state = member.state.borrow().clone();
        let Some(entry) = state.nodes.get(&from) else { return Known::Removed };
        if group != member.group || entry.raft_id != Some(raft_id) {
            return Known::Stale;
        }
        let (now, wall_ns) = (Instant::now(), self.clock.wall_ns());
        let mut pulse = self.pulse();
        if pulse.get_or_insert_with(|| Pulse::new(now)).note(from, raft_id, report, now, wall_ns) {
            self.nudge.notify_one();
        }
        Known::Enrolled
    }

    /// The group as this node sees it.
    pub(crate) fn own_status(&self) -> Status {
        let member = self.member();
        let metrics = member.raft.0.metrics().borrow().clone();
        let state = member.state.borrow().clone();
        let voting: BTreeSet<RaftId> = metrics.membership_config.voter_ids().collect();
        let leads = member.leads();
        let alive = leads.then(|| self.alive(&state, &voting));
        let reports: BTreeMap<_, _> =
            self.pulse().as_ref().map_or_else(Vec::new, |p| p.reports(Instant::now())).into_iter().collect();
        let one = |(node, entry): (&NodeId, &crate::state::NodeEntry)| MemberStatus {
            node: *node,
            name: entry.name.clone(),
            addrs: entry.addrs.clone(),
            votes: entry.raft_id.is_some_and(|id| voting.contains(&id)),
            alive: alive.as_ref().map(|alive| alive.contains(node)),
            heard_ms: reports.get(node).filter(|_| leads).map(|r| r.age_ms),
            skew_ms: reports.get(node).filter(|_| leads).map(|r| r.skew_ns / 1_000_000),
        };
        let members: Vec<_> = state.nodes.iter().map(one).collect();
        let voters_alive = members.iter().filter(|m| m.votes && m.alive == Some(true)).count();
        let alive = members.iter().filter(|m| m.alive == Some(true)).count();
        let survives = match leads {
            true => survives(voting.len(), voters_alive, alive),
            false => "This node knows no leader: nothing is decided here until one answers.".to_owned(),
        };
        Status {
            network: state.network,
            seen_by: self.me,
            leader: member.leader(),
            term: metrics.current_term,
            members,
            records: state.records.len(),
            survives,
        }
    }
}

async fn write(member: &Member, command: Command) -> Say {
    match member.raft.0.client_write(command).await {
        Ok(written) => Say::Outcome(written.data),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Say::NotLeader,
        Err(error) => Say::Trouble(error.to_string()),
    }
}

async fn read(member: &Member, vm: &VmId) -> Say {
    match member.raft.0.ensure_linearizable().await {
        Ok(_) => {}
        Err(RaftError::APIError(_)) => return Say::NotLeader,
        Err(error) => return Say::Trouble(error.to_string()),
    }
    let state = member.state.borrow();
    match state.network {
        Some(_) => Say::Reply(Reply::Record(state.records.get(vm).cloned())),
        None => Say::Trouble("the network is not formed yet".to_owned()),
    }
}
