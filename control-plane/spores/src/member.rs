//! One Raft member: what a process is in the group, from its start or its last enrolment on.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use mycelium_ram_core::NodeId;
use openraft::Snapshot;
use openraft::metrics::RaftServerMetrics;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::disk::Disk;
use crate::error::StartError;
use crate::links::Links;
use crate::raft::log::Log;
use crate::raft::machine::Machine;
use crate::raft::{Raft, RaftId, RaftNode, Timing};
use crate::state::NetworkState;
use crate::wire::{RaftRpc, RaftSay, Say};

/// A running Raft member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) group: u64,
    pub(crate) raft_id: RaftId,
    pub(crate) raft: RaftHandle,
    pub(crate) state: watch::Receiver<Arc<NetworkState>>,
    disk: Arc<Disk>,
    writer: JoinHandle<()>,
}

/// openraft's handle has no `Debug`.
pub(crate) struct RaftHandle(pub(crate) Raft);

impl std::fmt::Debug for RaftHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raft({})", self.0.metrics().borrow().id)
    }
}

impl Member {
    pub(crate) async fn start(
        links: Links,
        raft_id: RaftId,
        timing: Timing,
        disk: Arc<Disk>,
    ) -> Result<Self, StartError> {
        let (machine, state) = Machine::new(disk.clone());
        let (group, log) = (links.group, Log::new(disk.clone()));
        let config = Arc::new(timing.config()?);
        let raft = Raft::new(raft_id, config, links, log, machine).await;
        let raft = RaftHandle(raft.map_err(|error| StartError::Raft(error.to_string()))?);
        let writer = tokio::spawn(disk.clone().write_lazily());
        Ok(Self { group, raft_id, raft, state, disk, writer })
    }

    /// Begins a group of this member alone.
    pub(crate) async fn initialize(&self, node: RaftNode) -> Result<(), StartError> {
        let begun = self.raft.0.initialize(BTreeMap::from([(self.raft_id, node)])).await;
        begun.map_err(|error| StartError::Raft(error.to_string()))?;
        let wait = self.raft.0.wait(Some(crate::limits::JOIN));
        let led = wait.metrics(|m| m.current_leader == Some(m.id), "leads its own group").await;
        led.map(|_| ()).map_err(|error| StartError::Raft(error.to_string()))
    }

    /// Who leads, as far as this member knows.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        leader_in(&self.raft.0.server_metrics().borrow())
    }

    /// Returns when another than `leader`, or nobody, is known to lead.
    pub(crate) async fn deposed(&self, leader: NodeId) {
        let mut metrics = self.raft.0.server_metrics();
        // An error means that the member has stopped: then nobody is known to lead.
        let _ = metrics.wait_for(|m| leader_in(m) != Some(leader)).await;
    }

    /// Returns when somebody is known to lead who is not `old`.
    pub(crate) async fn new_leader(&self, old: Option<NodeId>) {
        let mut metrics = self.raft.0.server_metrics();
        let stopped =
            metrics.wait_for(|m| leader_in(m).is_some_and(|leader| Some(leader) != old)).await.is_err();
        if stopped {
            // The member has stopped and will hear of nobody; the caller has a deadline.
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn leads(&self) -> bool {
        let metrics = self.raft.0.server_metrics();
        let metrics = metrics.borrow();
        metrics.current_leader == Some(self.raft_id) && metrics.state.is_leader()
    }

    /// Serves another member's Raft.
    pub(crate) async fn serve(&self, rpc: RaftRpc) -> Say {
        let raft = &self.raft.0;
        let said = match rpc {
            RaftRpc::Append(rpc) => {
                raft.append_entries(rpc).await.map(RaftSay::Append).map_err(|e| e.to_string())
            }
            RaftRpc::Vote(rpc) => raft.vote(rpc).await.map(RaftSay::Vote).map_err(|e| e.to_string()),
            RaftRpc::Snapshot { vote, meta, state } => {
                let snapshot = Snapshot { meta, snapshot: Box::new(Cursor::new(state.into_bytes())) };
                let installed = raft.install_full_snapshot(vote, snapshot).await;
                installed.map(|r| RaftSay::Snapshot(r.vote)).map_err(|e| e.to_string())
            }
        };
        said.map_or_else(Say::Trouble, Say::Raft)
    }

    /// Stops for good; the newest state is on disk when this returns.
    pub(crate) async fn stop(&self) {
        self.writer.abort();
        if let Err(error) = self.raft.0.shutdown().await {
            tracing::warn!(%error, "the Raft member did not stop cleanly");
        }
        let disk = self.disk.clone();
        let _ = tokio::task::spawn_blocking(move || {
            if let Err(error) = disk.flush() {
                tracing::warn!(%error, "the state could not be written to the node's folder");
            }
            disk.close();
        })
        .await;
    }
}

fn leader_in(metrics: &RaftServerMetrics<RaftId, RaftNode>) -> Option<NodeId> {
    let leader = metrics.current_leader?;
    metrics.membership_config.membership().get_node(&leader).map(|node| node.key)
}

impl Drop for Member {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// A number that no other process start has.
pub(crate) fn random_id() -> Result<u64, StartError> {
    let drawn = OsRng.try_next_u64();
    drawn.map_err(|error| StartError::Random(mycelium_identity::NetworkIdError::Random(error.to_string())))
}
