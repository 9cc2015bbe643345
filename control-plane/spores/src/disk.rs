//! Keeps the state in the node's folder.
//!
//! While this node is the only voter, nobody else could remember a decision: each is on disk before it is told. Otherwise the
//! group remembers, and the file follows within half a second, for the day on which all voters are lost at once.
//!
//! `sole_voter` in the file is what lets a restarted node begin the group anew by itself, so it must never be there when
//! somebody else might decide:
//!
//! ```text
//!   true   written after a membership of this voter alone has been applied (committed)
//!   false  written before a membership with another voter in it can count (when it is put into the log)
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mycelium_identity::{KnownMember, NetworkFile, NodeFolder};
use mycelium_ram_core::NodeId;
use openraft::Membership;
use rhizomorph_link::PeerKey;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::book::Book;
use crate::limits;
use crate::raft::machine::{Keeper, Members};
use crate::raft::{RaftId, RaftNode};
use crate::state::{NetworkState, NodeEntry};

/// The file's name in the folder.
pub(crate) const FILE: &str = "state.json";

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateFile {
    /// Whether this node, and nobody else, decides.
    pub(crate) sole_voter: bool,
    /// The state as last seen.
    pub(crate) state: NetworkState,
}

/// The keeper of one Raft member.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: Arc<NodeFolder>,
    raft_id: RaftId,
    name: String,
    book: Arc<Book>,
    inner: Mutex<Inner>,
    dirty: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Index of the newest membership in the log, and whether it is of this voter alone.
    proposed: Option<(u64, bool)>,
    state: Option<Arc<NetworkState>>,
    /// What the file says, as far as this process wrote it.
    on_disk: Option<bool>,
    members: Vec<KnownMember>,
    closed: bool,
}

impl Disk {
    pub(crate) fn new(folder: Arc<NodeFolder>, raft_id: RaftId, name: String, book: Arc<Book>) -> Arc<Self> {
        Arc::new(Self { folder, raft_id, name, book, inner: Mutex::default(), dirty: Notify::new() })
    }

    /// Writes what is not written yet, whenever there is something; runs until dropped.
    pub(crate) async fn write_lazily(self: Arc<Self>) {
        loop {
            self.dirty.notified().await;
            tokio::time::sleep(limits::LAZY_WRITE).await;
            let disk = self.clone();
            let written = tokio::task::spawn_blocking(move || disk.flush()).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "the state could not be written to the node's folder");
            }
        }
    }

    /// Writes the newest state, and nothing from now on when `close`.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut inner = self.inner();
        let sole = inner.on_disk == Some(true);
        self.write(&mut inner, sole)
    }

    /// No more writes: another Raft member of this process takes over the folder.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
    }

    fn write(&self, inner: &mut Inner, sole_voter: bool) -> io::Result<()> {
        let Some(state) = inner.state.clone().filter(|_| !inner.closed) else { return Ok(()) };
        let members = known(&state.nodes);
        if let Some(network) = state.network.filter(|_| inner.members != members) {
            let file = NetworkFile { network, name: self.name.clone(), members: members.clone() };
            self.folder.set_network(&file).map_err(io::Error::other)?;
            inner.members = members;
        }
        let file = StateFile { sole_voter, state: (*state).clone() };
        self.folder.write(FILE, &file).map_err(io::Error::other)?;
        inner.on_disk = Some(sole_voter);
        Ok(())
    }

    fn alone(&self, membership: &Membership<RaftId, RaftNode>) -> bool {
        membership.get_joint_config().len() == 1 && membership.voter_ids().eq([self.raft_id])
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // The file is replaced whole, so a panic while the lock was held tore nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for Disk {
    fn proposed(&self, index: u64, membership: &Membership<RaftId, RaftNode>) -> io::Result<()> {
        let mut inner = self.inner();
        let alone = self.alone(membership);
        inner.proposed = Some((index, alone));
        if !alone && inner.on_disk == Some(true) { self.write(&mut inner, false) } else { Ok(()) }
    }

    fn applied(&self, state: &Arc<NetworkState>, members: &Members) -> io::Result<()> {
        if state.network.is_none() {
            return Ok(());
        }
        self.book.set(state.nodes.iter().map(|(id, entry)| (*id, entry.addrs.clone())));
        let mut inner = self.inner();
        inner.state = Some(state.clone());
        let applied = members.log_id().map(|id| id.index);
        let newest = inner.proposed.is_none_or(|(index, alone)| alone || Some(index) < applied);
        if newest && self.alone(members.membership()) {
            return self.write(&mut inner, true);
        }
        if inner.on_disk == Some(true) {
            self.write(&mut inner, false)?;
        }
        self.dirty.notify_one();
        Ok(())
    }
}

/// The nodes as `network.json` and newcomers know them.
pub(crate) fn known(nodes: &BTreeMap<NodeId, NodeEntry>) -> Vec<KnownMember> {
    let one = |(id, entry): (&NodeId, &NodeEntry)| KnownMember {
        key: PeerKey(id.0),
        name: entry.name.clone(),
        addrs: entry.addrs.clone(),
    };
    nodes.iter().map(one).collect()
}
