//! The arbiter's record of one VM and the only rules by which it changes.
//!
//! The arbiter is a compare-and-swap on this record. Whoever wins a swap decides: there is no second opinion. `decide`
//! is the whole arbiter; storing the record and answering on a socket is around it.
//!
//! ```text
//!   (none) --Create--> generation 1, active A, in_sync {}
//!   A: List(B)    in_sync + B     only the active proposes it, when B holds all that was released
//!   A: Unlist(B)  in_sync - B     only the active: from the moment it is applied, commits do not wait for B
//!   A: SetPace    pace            only the active
//!   A: SetMode    mode            only the active, when no lease is out
//!   B: TakeOver   generation + 1, active B, in_sync {}     only a listed incarnation
//! ```

use serde::{Deserialize, Serialize};

use crate::ids::{EpochId, Generation, Member, OpId, VmId};
use crate::limits;
use crate::mode::Mode;
use crate::pace::Pace;
use crate::sabotage::{Sabotage, sabotaged};

/// What the active does when a replica is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossPolicy {
    /// Stop the guest until a replica is there again: nothing is ever released unprotected.
    Halt,
    /// Run on unprotected once the arbiter has recorded the replica's removal.
    #[default]
    Degrade,
}

/// Who keeps the record. Moving it is a swap or an operator's override, never a fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Authority {
    /// One arbiter process with a durable record.
    #[default]
    Local,
    /// The Raft group of the network.
    Primary,
    /// An object store or etcd.
    Seed,
}

/// A replica that may take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The process.
    pub member: Member,
    /// The newest whole epoch it held when it was listed.
    pub since: EpochId,
}

/// The record of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which VM.
    pub vm: VmId,
    /// Counts changes; a swap names the version it expects.
    pub version: u64,
    /// Counts takeovers.
    pub generation: Generation,
    /// The only process that may run the guest.
    pub active: Member,
    /// Replicas without whose acknowledgement nothing commits, and which may take over.
    pub in_sync: Vec<Listed>,
    /// What happens when a replica is lost.
    pub policy: LossPolicy,
    /// How often epochs end, if somebody has said so; otherwise the active's own setting counts.
    #[serde(default)]
    pub pace: Option<Pace>,
    /// Whether output waits for its epoch. Whoever takes over by this record goes by it.
    #[serde(default)]
    pub mode: Mode,
    /// Who keeps this record.
    pub authority: Authority,
    /// The epoch the current active resumed from, after a takeover.
    pub takeover_epoch: Option<EpochId>,
    /// The newest operations applied, newest last.
    pub recent_ops: Vec<OpId>,
}

impl Record {
    /// Whether `member` may take over.
    #[must_use]
    pub fn lists(&self, member: Member) -> bool {
        self.in_sync.iter().any(|l| l.member == member)
    }

    /// Whether this record holds the operation, which settles a lost reply.
    #[must_use]
    pub fn holds(&self, op: OpId) -> bool {
        self.recent_ops.contains(&op)
    }
}

/// What a swap wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Make the record; the proposer becomes the active of generation 1.
    Create {
        /// Policy for the VM.
        policy: LossPolicy,
    },
    /// List a replica.
    List {
        /// The replica.
        member: Member,
        /// The newest whole epoch it holds.
        since: EpochId,
    },
    /// Take a replica off the list.
    Unlist {
        /// The replica.
        member: Member,
    },
    /// Say how often epochs are to end, from now on and after takeovers.
    SetPace {
        /// The pace.
        pace: Pace,
    },
    /// Say whether output is to wait for its epoch, from now on and after takeovers.
    SetMode {
        /// The mode.
        mode: Mode,
    },
    /// Become the active.
    TakeOver {
        /// The newest whole epoch the proposer holds: the guest resumes from its end.
        epoch: EpochId,
    },
}

/// A proposed compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// Which VM.
    pub vm: VmId,
    /// The version the proposer saw; 0 when it saw no record.
    pub expected_version: u64,
    /// Who proposes.
    pub proposer: Member,
    /// Names the attempt: sending it again is harmless.
    pub op: OpId,
    /// The change.
    pub change: Change,
}

/// Why a swap was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Somebody changed the record since the proposer read it.
    #[error("the record has changed since it was read")]
    Changed,
    /// There is no record to change.
    #[error("there is no record of this VM")]
    NoRecord,
    /// There is a record already.
    #[error("there is a record of this VM already")]
    Exists,
    /// Only the active may propose this.
    #[error("only the active may change who is in sync, the pace and the mode")]
    NotActive,
    /// Only a listed incarnation may take over.
    #[error("only a replica that is listed in sync may take over")]
    NotListed,
    /// The proposer's epoch is older than what it held when it was listed.
    #[error("the epoch is older than the one the replica was listed with")]
    EpochTooOld,
    /// The list is full.
    #[error("the record lists as many replicas as it can")]
    Full,
}

/// What becomes of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Store this record, then answer.
    Apply(Record),
    /// This very operation was applied before: answer as then.
    Already,
    /// Leave the record.
    Refuse(Refusal),
}

/// Decides a swap against the current record.
#[must_use]
pub fn decide(current: Option<&Record>, swap: &Swap) -> Verdict {
    match (current, &swap.change) {
        (Some(record), _) if record.holds(swap.op) => Verdict::Already,
        (None, Change::Create { policy }) => Verdict::Apply(created(swap, *policy)),
        (None, _) => Verdict::Refuse(Refusal::NoRecord),
        (Some(_), Change::Create { .. }) => Verdict::Refuse(Refusal::Exists),
        (Some(record), _) if record.version != swap.expected_version => Verdict::Refuse(Refusal::Changed),
        (Some(record), change) => match changed(record, swap.proposer, change) {
            Ok(next) => Verdict::Apply(stamped(next, swap.op)),
            Err(refusal) => Verdict::Refuse(refusal),
        },
    }
}

fn created(swap: &Swap, policy: LossPolicy) -> Record {
    Record {
        vm: swap.vm.clone(),
        version: 1,
        generation: Generation(1),
        active: swap.proposer,
        in_sync: Vec::new(),
        policy,
        pace: None,
        mode: Mode::Sync,
        authority: Authority::Local,
        takeover_epoch: None,
        recent_ops: vec![swap.op],
    }
}

fn changed(record: &Record, proposer: Member, change: &Change) -> Result<Record, Refusal> {
    let mut next = record.clone();
    match change {
        Change::List { .. } | Change::Unlist { .. } | Change::SetPace { .. } | Change::SetMode { .. }
            if proposer != record.active =>
        {
            return Err(Refusal::NotActive);
        }
        Change::List { member, since } => {
            next.in_sync.retain(|l| l.member != *member);
            next.in_sync.push(Listed { member: *member, since: *since });
            if next.in_sync.len() > limits::PEERS {
                return Err(Refusal::Full);
            }
        }
        Change::Unlist { member } => next.in_sync.retain(|l| l.member != *member),
        Change::SetPace { pace } => next.pace = Some(*pace),
        Change::SetMode { mode } => next.mode = *mode,
        Change::TakeOver { epoch } => {
            let listed = record.in_sync.iter().find(|l| l.member == proposer);
            match listed {
                None if sabotaged(Sabotage::SeedingTakesOver) => {}
                None => return Err(Refusal::NotListed),
                Some(l) if *epoch < l.since => return Err(Refusal::EpochTooOld),
                Some(_) => {}
            }
            next.generation = record.generation.next();
            next.active = proposer;
            next.in_sync.clear();
            next.takeover_epoch = Some(*epoch);
        }
        Change::Create { .. } => return Err(Refusal::Exists),
    }
    Ok(next)
}

fn stamped(mut record: Record, op: OpId) -> Record {
    record.version += 1;
    record.recent_ops.push(op);
    let excess = record.recent_ops.len().saturating_sub(limits::RECENT_OPS);
    record.recent_ops.drain(..excess);
    record
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::{Incarnation, NodeId};
    use proptest::prelude::*;

    pub(crate) fn member(n: u8) -> Member {
        Member { node: NodeId([n; 32]), incarnation: Incarnation(u64::from(n)) }
    }

    pub(crate) fn swap(proposer: Member, expected_version: u64, count: u64, change: Change) -> Swap {
        let op = OpId { incarnation: proposer.incarnation, count };
        Swap { vm: VmId::new("vm").unwrap(), expected_version, proposer, op, change }
    }

    fn apply(current: Option<&Record>, s: &Swap) -> Record {
        match decide(current, s) {
            Verdict::Apply(r) => r,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn takeover_against_degrade_has_one_winner() {
        let (a, b) = (member(1), member(2));
        let r1 = apply(None, &swap(a, 0, 1, Change::Create { policy: LossPolicy::Degrade }));
        let r2 = apply(Some(&r1), &swap(a, 1, 2, Change::List { member: b, since: EpochId(4) }));
        let degrade = swap(a, 2, 3, Change::Unlist { member: b });
        let takeover = swap(b, 2, 1, Change::TakeOver { epoch: EpochId(9) });

        let won = apply(Some(&r2), &takeover);
        assert_eq!((won.generation, won.active, won.takeover_epoch), (Generation(2), b, Some(EpochId(9))));
        assert_eq!(decide(Some(&won), &degrade), Verdict::Refuse(Refusal::Changed));
        assert_eq!(decide(Some(&won), &takeover), Verdict::Already);

        let degraded = apply(Some(&r2), &degrade);
        assert_eq!(decide(Some(&degraded), &takeover), Verdict::Refuse(Refusal::Changed));
        let again = swap(b, degraded.version, 2, Change::TakeOver { epoch: EpochId(9) });
        assert_eq!(decide(Some(&degraded), &again), Verdict::Refuse(Refusal::NotListed));
    }

    #[test]
    fn only_the_active_lists() {
        let r = apply(None, &swap(member(1), 0, 1, Change::Create { policy: LossPolicy::Halt }));
        let list = swap(member(2), 1, 1, Change::List { member: member(2), since: EpochId(1) });
        assert_eq!(decide(Some(&r), &list), Verdict::Refuse(Refusal::NotActive));
    }

    fn any_change() -> impl Strategy<Value = (u8, Change)> {
        let change = prop_oneof![
            (1u8..4, 0u64..9).prop_map(|(m, e)| Change::List { member: member(m), since: EpochId(e) }),
            (1u8..4).prop_map(|m| Change::Unlist { member: member(m) }),
            (0u64..9).prop_map(|e| Change::TakeOver { epoch: EpochId(e) }),
        ];
        (1u8..4, change)
    }

    proptest! {
        #[test]
        fn versions_rise_by_one_and_generations_only_by_takeover(
            changes in proptest::collection::vec((any_change(), 0u64..3), 0..40),
        ) {
            let mut now = apply(None, &swap(member(1), 0, 0, Change::Create { policy: LossPolicy::Degrade }));
            for (n, ((who, change), lag)) in changes.into_iter().enumerate() {
                let s = swap(member(who), now.version.saturating_sub(lag), n as u64 + 1, change);
                if let Verdict::Apply(next) = decide(Some(&now), &s) {
                    prop_assert_eq!(next.version, now.version + 1);
                    let took = matches!(s.change, Change::TakeOver { .. });
                    prop_assert_eq!(next.generation.0, now.generation.0 + u64::from(took));
                    prop_assert!(!took || now.lists(s.proposer));
                    prop_assert!(next.recent_ops.len() <= limits::RECENT_OPS);
                    prop_assert!(took || next.active == now.active);
                    now = next;
                }
            }
        }
    }
}
