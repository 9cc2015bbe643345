//! What the network knows: its nodes, spent invitations, and one arbiter record per VM. Pure: every voter applies the same
//! commands in the same order and comes to the same state, so nothing here reads a clock, a file or randomness.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mycelium_identity::NetworkId;
use mycelium_ram_core::record::{Authority, Record, Swap, Verdict, decide};
use mycelium_ram_core::settle::Reply;
use mycelium_ram_core::{Member, NodeId, VmId};
use serde::{Deserialize, Serialize};

use crate::limits;

/// One node of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name, unique in the network.
    pub name: String,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
    /// The Raft member that its present process is; none after the group was formed anew, until it enrols.
    pub raft_id: Option<u64>,
    /// Unix seconds.
    pub joined_at: u64,
}

/// The state of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Which network; none until the group is formed.
    pub network: Option<NetworkId>,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Nonces of used invitations (as hexadecimal digits), with the unix second in which they expire.
    pub spent: BTreeMap<String, u64>,
    /// Arbiter records.
    pub records: BTreeMap<VmId, Record>,
}

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Begins the group: a new network, or the state of one that is formed anew.
    Form(Box<NetworkState>),
    /// A compare-and-swap on a record.
    Swap(Swap),
    /// Lets a node in.
    Admit(Box<Admission>),
    /// A known node is back as another process.
    Enrol(Enrolment),
    /// Takes a node out.
    Remove(NodeId),
    /// Drops a record: whatever it is, on an operator's order, or only if it still is that one.
    Forget(VmId, Option<Seen>),
}

/// Which record somebody has read. The version alone would not do: records made anew count from the start again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    version: u64,
    active: Member,
}

impl Seen {
    /// Of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self { version: record.version, active: record.active }
    }
}

/// A node with an invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The invitation's network.
    pub network: NetworkId,
    /// Who signed it.
    pub inviter: NodeId,
    /// Its nonce.
    pub nonce: [u8; 16],
    /// Unix seconds.
    pub expires_at: u64,
    /// The admitting node's clock, unix seconds.
    pub now: u64,
    /// Who comes.
    pub node: NodeId,
    /// Its entry.
    pub entry: NodeEntry,
}

/// A node's present process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Which network it thinks it is in.
    pub network: NetworkId,
    /// Which node.
    pub node: NodeId,
    /// Its Raft member.
    pub raft_id: u64,
    /// Where it listens now.
    pub addrs: Vec<SocketAddr>,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, or nothing to do.
    Done,
    /// A swap's outcome.
    Swapped(Reply),
    /// The record that was dropped.
    Forgotten(Option<Record>),
    /// Not done.
    Refused(Refused),
}

/// Why a command was not applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// The group has no state yet.
    #[error("the network is not formed yet; try again in a moment")]
    NotFormed,
    /// It has.
    #[error("the network is formed already")]
    Formed,
    /// A token of another network.
    #[error(
        "this is for network {theirs}, but this node is in network {ours}; ask for an invitation on a member of the network you mean"
    )]
    WrongNetwork {
        /// In the command.
        theirs: String,
        /// Here.
        ours: String,
    },
    /// A used invitation.
    #[error(
        "this invitation has been used; each lets one node in: make another with `mycelium network invite`"
    )]
    Spent,
    /// An old invitation.
    #[error("this invitation has expired; make another with `mycelium network invite`")]
    Expired,
    /// By one who is no member.
    #[error(
        "the invitation was made by node {0:?}, which is not in the network any more; ask a present member for one"
    )]
    UnknownInviter(NodeId),
    /// The name is used.
    #[error("a node called {0:?} is in the network already; choose another name with `--name`")]
    NameTaken(String),
    /// A name or address list that cannot be used.
    #[error("the node's entry cannot be used: {0}")]
    BadEntry(String),
    /// Not in the network.
    #[error("node {0:?} is not in this network; let it join with an invitation (`mycelium network invite`)")]
    Unknown(NodeId),
    /// No room for nodes.
    #[error("the network has {max} nodes, as many as it can; remove one first", max = limits::NODES)]
    ManyNodes,
    /// No room for spent invitations.
    #[error("{max} invitations are remembered as used, as many as can be; wait until some expire", max = limits::SPENT)]
    ManySpent,
    /// No room for records.
    #[error("the network keeps {max} records, as many as it can; forget one of a VM that is gone (`mycelium forget`)", max = limits::RECORDS)]
    ManyRecords,
    /// A network has at least one node.
    #[error("node {0:?} is the last one; stop its daemon instead of removing it")]
    LastNode(NodeId),
}

/// Applies one command.
pub fn apply(state: &mut NetworkState, command: &Command) -> Outcome {
    let outcome = match command {
        Command::Form(formed) => form(state, formed),
        _ if state.network.is_none() => Err(Refused::NotFormed),
        Command::Swap(swap) => return swapped(state, swap),
        Command::Admit(admission) => admit(state, admission),
        Command::Enrol(enrolment) => enrol(state, enrolment),
        Command::Remove(node) => remove(state, *node),
        Command::Forget(vm, seen) => {
            let is_meant = |r: &Record| seen.is_none_or(|seen| seen == Seen::of(r));
            let is_meant = state.records.get(vm).is_some_and(is_meant);
            return Outcome::Forgotten(is_meant.then(|| state.records.remove(vm)).flatten());
        }
    };
    outcome.map_or_else(Outcome::Refused, |()| Outcome::Done)
}

fn form(state: &mut NetworkState, formed: &NetworkState) -> Result<(), Refused> {
    if state.network.is_some() {
        return Err(Refused::Formed);
    }
    *state = formed.clone();
    Ok(())
}

fn swapped(state: &mut NetworkState, swap: &Swap) -> Outcome {
    let op = swap.op;
    let current = state.records.get(&swap.vm);
    let full = current.is_none() && state.records.len() >= limits::RECORDS;
    match decide(current, swap) {
        Verdict::Apply(_) if full => Outcome::Refused(Refused::ManyRecords),
        Verdict::Apply(record) => {
            let record = Record { authority: Authority::Primary, ..record };
            state.records.insert(swap.vm.clone(), record.clone());
            Outcome::Swapped(Reply::Applied { op, record })
        }
        Verdict::Already => match current.cloned() {
            Some(record) => Outcome::Swapped(Reply::Applied { op, record }),
            None => unreachable!("only an existing record holds an operation"),
        },
        Verdict::Refuse(refusal) => {
            Outcome::Swapped(Reply::Refused { op, refusal, record: current.cloned() })
        }
    }
}

fn admit(state: &mut NetworkState, admission: &Admission) -> Result<(), Refused> {
    same_network(state, admission.network)?;
    state.spent.retain(|_, expires_at| *expires_at > admission.now);
    let nonce: String = admission.nonce.iter().map(|b| format!("{b:02x}")).collect();
    if admission.expires_at <= admission.now {
        return Err(Refused::Expired);
    }
    if state.spent.contains_key(&nonce) {
        // The same process asks again because the answer was lost.
        let known = state.nodes.get(&admission.node).is_some_and(|e| e.raft_id == admission.entry.raft_id);
        return if known { Ok(()) } else { Err(Refused::Spent) };
    }
    if !state.nodes.contains_key(&admission.inviter) {
        return Err(Refused::UnknownInviter(admission.inviter));
    }
    fits(state, admission.node, &admission.entry)?;
    state.spent.insert(nonce, admission.expires_at);
    state.nodes.insert(admission.node, admission.entry.clone());
    Ok(())
}

fn fits(state: &NetworkState, node: NodeId, entry: &NodeEntry) -> Result<(), Refused> {
    let printable = !entry.name.is_empty() && entry.name.chars().all(|c| c.is_ascii_graphic());
    if !printable || entry.name.len() > mycelium_identity::limits::NAME_BYTES {
        let max = mycelium_identity::limits::NAME_BYTES;
        return Err(Refused::BadEntry(format!(
            "a name has 1 to {max} visible ASCII characters and no space"
        )));
    }
    addressed(&entry.addrs)?;
    let others = || state.nodes.iter().filter(|(id, _)| **id != node);
    if others().any(|(_, other)| other.name == entry.name) {
        return Err(Refused::NameTaken(entry.name.clone()));
    }
    if others().count() >= limits::NODES {
        return Err(Refused::ManyNodes);
    }
    if state.spent.len() >= limits::SPENT { Err(Refused::ManySpent) } else { Ok(()) }
}

fn addressed(addrs: &[SocketAddr]) -> Result<(), Refused> {
    if (1..=limits::ADDRESSES).contains(&addrs.len()) {
        return Ok(());
    }
    Err(Refused::BadEntry(format!("it lists {} addresses, 1 to {} are used", addrs.len(), limits::ADDRESSES)))
}

fn enrol(state: &mut NetworkState, enrolment: &Enrolment) -> Result<(), Refused> {
    same_network(state, enrolment.network)?;
    addressed(&enrolment.addrs)?;
    let entry = state.nodes.get_mut(&enrolment.node).ok_or(Refused::Unknown(enrolment.node))?;
    entry.raft_id = Some(enrolment.raft_id);
    entry.addrs.clone_from(&enrolment.addrs);
    Ok(())
}

fn remove(state: &mut NetworkState, node: NodeId) -> Result<(), Refused> {
    if state.nodes.len() == 1 && state.nodes.contains_key(&node) {
        return Err(Refused::LastNode(node));
    }
    state.nodes.remove(&node);
    Ok(())
}

fn same_network(state: &NetworkState, theirs: NetworkId) -> Result<(), Refused> {
    match state.network {
        Some(ours) if ours == theirs => Ok(()),
        Some(ours) => Err(Refused::WrongNetwork { theirs: theirs.short(), ours: ours.short() }),
        None => Err(Refused::NotFormed),
    }
}

#[cfg(test)]
mod tests {
    use mycelium_ram_core::record::{Change, LossPolicy};
    use mycelium_ram_core::{Incarnation, Member, OpId};
    use proptest::prelude::*;

    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    fn entry(n: u8) -> NodeEntry {
        let addrs = vec![SocketAddr::from(([10, 0, 0, n], 7946))];
        NodeEntry { name: format!("n{n}"), addrs, raft_id: Some(n.into()), joined_at: n.into() }
    }

    fn formed() -> NetworkState {
        let mut state = NetworkState::default();
        let nodes = BTreeMap::from([(node(1), entry(1))]);
        let first = NetworkState { network: Some(NetworkId([7; 32])), nodes, ..NetworkState::default() };
        assert_eq!(apply(&mut state, &Command::Form(Box::new(first))), Outcome::Done);
        state
    }

    fn admission(n: u8, nonce: u8, now: u64) -> Admission {
        let (network, inviter) = (NetworkId([7; 32]), node(1));
        Admission {
            network,
            inviter,
            nonce: [nonce; 16],
            expires_at: 100,
            now,
            node: node(n),
            entry: entry(n),
        }
    }

    fn admitted(state: &mut NetworkState, admission: Admission) -> Outcome {
        apply(state, &Command::Admit(Box::new(admission)))
    }

    #[test]
    fn an_invitation_lets_one_node_in_until_it_expires() {
        let mut state = formed();
        assert_eq!(admitted(&mut state, admission(2, 5, 10)), Outcome::Done);
        assert_eq!(admitted(&mut state, admission(2, 5, 11)), Outcome::Done, "the answer was lost");
        assert_eq!(admitted(&mut state, admission(3, 5, 12)), Outcome::Refused(Refused::Spent));
        assert_eq!(admitted(&mut state, admission(3, 6, 100)), Outcome::Refused(Refused::Expired));
        assert!(state.spent.is_empty(), "an expired one needs no memory");
    }

    #[test]
    fn each_refusal_of_a_node_is_named() {
        let mut state = formed();
        let mut other = admission(2, 1, 10);
        other.network = NetworkId([8; 32]);
        assert!(matches!(admitted(&mut state, other), Outcome::Refused(Refused::WrongNetwork { .. })));
        let mut stranger = admission(2, 1, 10);
        stranger.inviter = node(9);
        assert_eq!(admitted(&mut state, stranger), Outcome::Refused(Refused::UnknownInviter(node(9))));
        let mut twin = admission(2, 1, 10);
        twin.entry.name = "n1".into();
        assert_eq!(admitted(&mut state, twin), Outcome::Refused(Refused::NameTaken("n1".into())));
        let mut homeless = admission(2, 1, 10);
        homeless.entry.addrs.clear();
        assert!(matches!(admitted(&mut state, homeless), Outcome::Refused(Refused::BadEntry(_))));
        assert_eq!(state.nodes.len(), 1);
        assert!(state.spent.is_empty(), "a refused node spends nothing");
    }

    #[test]
    fn a_restarted_node_enrols_and_a_removed_one_does_not() {
        let mut state = formed();
        admitted(&mut state, admission(2, 5, 10));
        let network = NetworkId([7; 32]);
        let back = Enrolment { network, node: node(2), raft_id: 99, addrs: entry(2).addrs };
        assert_eq!(apply(&mut state, &Command::Enrol(back.clone())), Outcome::Done);
        assert_eq!(state.nodes[&node(2)].raft_id, Some(99));
        assert_eq!(apply(&mut state, &Command::Remove(node(2))), Outcome::Done);
        assert_eq!(apply(&mut state, &Command::Enrol(back)), Outcome::Refused(Refused::Unknown(node(2))));
        let last = apply(&mut state, &Command::Remove(node(1)));
        assert_eq!(last, Outcome::Refused(Refused::LastNode(node(1))));
    }

    fn swap(who: u8, count: u64, expected_version: u64, change: Change) -> Command {
        let incarnation = Incarnation(who.into());
        let proposer = Member { node: node(who), incarnation };
        let vm = VmId::new("vm").unwrap();
        Command::Swap(Swap { vm, expected_version, proposer, op: OpId { incarnation, count }, change })
    }

    #[test]
    fn records_made_here_say_so_and_can_be_forgotten() {
        let mut state = formed();
        apply(&mut state, &swap(1, 1, 0, Change::Create { policy: LossPolicy::Degrade }));
        let vm = VmId::new("vm").unwrap();
        assert_eq!(state.records[&vm].authority, Authority::Primary);
        let forget = |seen| Command::Forget(vm.clone(), seen);
        let first = Seen::of(&state.records[&vm]);
        assert!(matches!(apply(&mut state, &forget(Some(first))), Outcome::Forgotten(Some(_))));
        apply(&mut state, &swap(2, 1, 0, Change::Create { policy: LossPolicy::Degrade }));
        assert_eq!(Seen::of(&state.records[&vm]).version, first.version);
        assert_eq!(apply(&mut state, &forget(Some(first))), Outcome::Forgotten(None), "it is another one");
        assert!(matches!(apply(&mut state, &forget(None)), Outcome::Forgotten(Some(_))));
        assert_eq!(apply(&mut state, &forget(None)), Outcome::Forgotten(None));
    }

    #[test]
    fn nothing_is_decided_before_the_group_is_formed() {
        let mut state = NetworkState::default();
        let create = swap(1, 1, 0, Change::Create { policy: LossPolicy::Degrade });
        assert_eq!(apply(&mut state, &create), Outcome::Refused(Refused::NotFormed));
        let again = Command::Form(Box::new(formed()));
        assert_eq!(apply(&mut formed(), &again), Outcome::Refused(Refused::Formed));
    }

    fn any_command() -> impl Strategy<Value = Command> {
        prop_oneof![
            (1u8..5, 0u8..6, 0u64..200)
                .prop_map(|(n, nonce, now)| Command::Admit(Box::new(admission(n, nonce, now)))),
            (1u8..5).prop_map(|n| Command::Remove(node(n))),
            (1u8..5, any::<u64>()).prop_map(|(n, raft_id)| Command::Enrol(Enrolment {
                network: NetworkId([7; 32]),
                node: node(n),
                raft_id,
                addrs: entry(n).addrs,
            })),
            (1u8..3, 0u64..20).prop_map(|(w, c)| swap(w, c, 0, Change::Create { policy: LossPolicy::Halt })),
            (1u8..3, 0u64..20, 0u64..4).prop_map(|(w, c, v)| {
                let member = Member { node: node(3 - w), incarnation: Incarnation((3 - w).into()) };
                swap(w, c, v, Change::List { member, since: mycelium_ram_core::EpochId(0) })
            }),
            (1u8..3, 0u64..20, 0u64..4).prop_map(|(w, c, v)| swap(
                w,
                c,
                v,
                Change::TakeOver { epoch: mycelium_ram_core::EpochId(1) }
            )),
        ]
    }

    proptest! {
        #[test]
        fn any_commands_keep_the_rules(commands in proptest::collection::vec(any_command(), 0..60)) {
            let (mut state, mut twin) = (formed(), formed());
            for command in &commands {
                let before = state.clone();
                let outcome = apply(&mut state, command);
                prop_assert_eq!(&outcome, &apply(&mut twin, command));
                if matches!(outcome, Outcome::Refused(_)) {
                    prop_assert_eq!(&state.nodes, &before.nodes);
                    prop_assert_eq!(&state.records, &before.records);
                }
                for (vm, record) in &state.records {
                    let was = before.records.get(vm).map_or(0, |r| r.version);
                    prop_assert!(record.version == was || record.version == was + 1);
                    prop_assert_eq!(record.authority, Authority::Primary);
                }
                prop_assert!(!state.nodes.is_empty());
            }
            prop_assert_eq!(&state, &twin);
            let text = serde_json::to_string(&state).unwrap();
            prop_assert_eq!(serde_json::from_str::<NetworkState>(&text).unwrap(), state);
        }
    }
}
