//! The state machine: applies committed commands to the state, and tells a keeper, who may put it on disk.

use std::io::{self, Cursor};
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    Entry, EntryPayload, LogId, Membership, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};
use tokio::sync::watch;

use super::{RaftId, RaftNode, Types};
use crate::state::{NetworkState, Outcome, apply};

/// A membership as Raft stores it.
pub type Members = StoredMembership<RaftId, RaftNode>;

/// Hears of what happens to the group, to keep it on disk. Calls come from one task each, in order.
pub trait Keeper: std::fmt::Debug + Send + Sync + 'static {
    /// A membership entry was written to the log at `index`. It does not count before this returns.
    ///
    /// # Errors
    /// When what must be on disk is not: the member stops.
    fn proposed(&self, index: u64, membership: &Membership<RaftId, RaftNode>) -> io::Result<()>;

    /// The state has changed. Nobody is told of the change before this returns.
    ///
    /// # Errors
    /// When what must be on disk is not: the member stops.
    fn applied(&self, state: &Arc<NetworkState>, members: &Members) -> io::Result<()>;
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoKeeper;

impl Keeper for NoKeeper {
    fn proposed(&self, _: u64, _: &Membership<RaftId, RaftNode>) -> io::Result<()> {
        Ok(())
    }

    fn applied(&self, _: &Arc<NetworkState>, _: &Members) -> io::Result<()> {
        Ok(())
    }
}

/// The state machine of one Raft member.
#[derive(Debug)]
pub struct Machine {
    last_applied: Option<LogId<RaftId>>,
    members: Members,
    state: Arc<NetworkState>,
    shown: watch::Sender<Arc<NetworkState>>,
    snapshot: Option<Stored>,
    keeper: Arc<dyn Keeper>,
}

#[derive(Clone, Debug)]
struct Stored {
    meta: SnapshotMeta<RaftId, RaftNode>,
    bytes: Vec<u8>,
}

impl Stored {
    fn open(&self) -> Snapshot<Types> {
        Snapshot { meta: self.meta.clone(), snapshot: Box::new(Cursor::new(self.bytes.clone())) }
    }
}

impl Machine {
    /// An empty one, and where its state can be read after each change.
    #[must_use]
    pub fn new(keeper: Arc<dyn Keeper>) -> (Self, watch::Receiver<Arc<NetworkState>>) {
        let state = Arc::new(NetworkState::default());
        let (shown, seen) = watch::channel(state.clone());
        let members = Members::default();
        (Self { last_applied: None, members, state, shown, snapshot: None, keeper }, seen)
    }

    /// Waits for the disk only where the keeper must: when this member decides alone, and nobody else waits for it.
    fn publish(&self) -> io::Result<()> {
        self.keeper.applied(&self.state, &self.members)?;
        self.shown.send_replace(self.state.clone());
        Ok(())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId<RaftId>>, Members), StorageError<RaftId>> {
        Ok((self.last_applied, self.members.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError<RaftId>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        for entry in entries {
            self.last_applied = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Done,
                EntryPayload::Normal(command) => apply(Arc::make_mut(&mut self.state), &command),
                EntryPayload::Membership(membership) => {
                    self.members = Members::new(Some(entry.log_id), membership);
                    Outcome::Done
                }
            });
        }
        self.publish().map_err(|error| StorageIOError::write_state_machine(&error))?;
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let id = self.last_applied.map_or_else(String::new, |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.last_applied,
            last_membership: self.members.clone(),
            snapshot_id: id,
        };
        let stored = serde_json::to_vec(&*self.state).map(|bytes| Stored { meta, bytes });
        if let Ok(stored) = &stored {
            self.snapshot = Some(stored.clone());
        }
        Builder { stored: stored.map_err(io::Error::from) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<RaftId>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<RaftId, RaftNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<RaftId>> {
        let bytes = snapshot.into_inner();
        let state: NetworkState = serde_json::from_slice(&bytes)
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), &error))?;
        self.last_applied = meta.last_log_id;
        self.members = meta.last_membership.clone();
        self.state = Arc::new(state);
        self.snapshot = Some(Stored { meta: meta.clone(), bytes });
        self.publish().map_err(|error| StorageIOError::write_state_machine(&error))?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<RaftId>> {
        Ok(self.snapshot.as_ref().map(Stored::open))
    }
}

/// Hands over the state as it was when the snapshot was asked for.
#[derive(Debug)]
pub struct Builder {
    stored: io::Result<Stored>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<RaftId>> {
        match &self.stored {
            Ok(stored) => Ok(stored.open()),
            Err(error) => Err(StorageIOError::write_snapshot(None, error).into()),
        }
    }
}
