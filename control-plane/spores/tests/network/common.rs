//! Nodes of one network in this process, over loopback UDP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mycelium_identity::{FolderError, NodeFolder};
use mycelium_ram_core::record::{Change, LossPolicy, Record, Swap};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{EpochId, Incarnation, Member, NodeId, OpId, VmId};
use mycelium_spores::{Spore, SporeConfig, StartError, Status};
use tokio::time::{Instant, sleep};

/// How long anything may take on a busy machine before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// Folders of a test's nodes; removed at its end.
pub(crate) struct Lab(tempfile::TempDir);

impl Lab {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A node's configuration, once its folder is free: a killed node's last tasks may still hold it.
    pub(crate) async fn config(&self, name: &str) -> SporeConfig {
        let folder = until("the folder is free", || async {
            match NodeFolder::open(&self.path(name)) {
                Err(FolderError::Locked(_)) => None,
                opened => Some(opened.unwrap()),
            }
        });
        SporeConfig::new(folder.await, name, LOOPBACK.into())
    }

    pub(crate) async fn found(&self, name: &str) -> Spore {
        Spore::found(self.config(name).await).await.unwrap()
    }

    pub(crate) async fn join(&self, name: &str, through: &Spore) -> Spore {
        let invitation = through.invite(Duration::from_secs(600)).unwrap();
        Spore::join(self.config(name).await, &invitation.to_string()).await.unwrap()
    }

    /// A network of these nodes, settled.
    pub(crate) async fn network(&self, names: &[&str]) -> Vec<Spore> {
        let mut nodes = vec![self.found(names[0]).await];
        for name in &names[1..] {
            nodes.push(self.join(name, &nodes[0]).await);
        }
        let voters = if names.len() >= 3 { 3 } else { 1 };
        for node in &nodes {
            settled(node, voters, names.len()).await;
        }
        nodes
    }

    /// Starts a stopped node again, at the address it had, once its socket is free.
    pub(crate) async fn resume(&self, name: &str, addr: SocketAddr) -> Spore {
        until("the address is free", || async {
            let mut config = self.config(name).await;
            config.listen = addr;
            match Spore::resume(config).await {
                Err(StartError::Bind { .. }) => None,
                resumed => Some(resumed.unwrap()),
            }
        })
        .await
    }
}

/// Asks until there is an answer, or fails the test.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Until the group, as seen through `node`, has so many voters and so many nodes alive.
pub(crate) async fn settled(node: &Spore, voters: usize, alive: usize) -> Status {
    until(&format!("{voters} voters, {alive} alive"), || async {
        let status = node.status().await;
        let living = status.members.iter().filter(|m| m.alive == Some(true)).count();
        (status.voters().len() == voters && living == alive).then_some(status)
    })
    .await
}

pub(crate) fn vm() -> VmId {
    VmId::new("vm").unwrap()
}

/// A process of a node that asks the arbiter.
pub(crate) fn process(node: &Spore, incarnation: u64) -> Member {
    Member { node: node.node(), incarnation: Incarnation(incarnation) }
}

pub(crate) fn swap(proposer: Member, count: u64, expected_version: u64, change: Change) -> Swap {
    let op = OpId { incarnation: proposer.incarnation, count };
    Swap { vm: vm(), expected_version, proposer, op, change }
}

pub(crate) fn create() -> Change {
    Change::Create { policy: LossPolicy::Degrade }
}

pub(crate) fn list(member: Member) -> Change {
    Change::List { member, since: EpochId(1) }
}

pub(crate) fn take_over() -> Change {
    Change::TakeOver { epoch: EpochId(2) }
}

/// Asks through `node`, again while nothing comes, as the replication driver does.
pub(crate) async fn decide(node: &Spore, swap: Swap) -> Reply {
    until("the arbiter answers", || async {
        node.answer(swap.vm.clone(), Request::Swap(swap.clone())).await.ok()
    })
    .await
}

/// A swap that must be applied.
pub(crate) async fn applied(node: &Spore, swap: Swap) -> Record {
    match decide(node, swap).await {
        Reply::Applied { record, .. } => record,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn read(node: &Spore) -> Option<Record> {
    until("the arbiter reads", || async { node.answer(vm(), Request::Read).await.ok() })
        .await
        .record()
        .cloned()
}

/// Which of `nodes` leads.
pub(crate) async fn leader(nodes: &[Spore]) -> usize {
    until("a leader", || async {
        let leader = nodes[0].status().await.leader?;
        nodes.iter().position(|n| n.node() == leader)
    })
    .await
}

pub(crate) fn is(node: &Spore) -> NodeId {
    node.node()
}
