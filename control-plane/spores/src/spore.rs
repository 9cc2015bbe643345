//! The handle by which a daemon uses the spore.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use mycelium_identity::{Invitation, NetworkId, NodeFolder};
use mycelium_ram_core::record::Record;
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{NodeId, VmId};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::book::Book;
use crate::clock::Clock;
use crate::config::Handler;
use crate::error::SporeError;
use crate::limits;
use crate::member::Member;
use crate::mesh::{Mesh, MeshError};
use crate::raft::Timing;
use crate::report::{NodeReport, Pulse, Reported};
use crate::state::{Command, NetworkState, NodeEntry, Outcome, Seen};
use crate::status::Status;
use crate::wire::{Ask, DAEMON, OWN, Say, decode, encode};

/// A running node of the network. Clones are the same node; it stops when the last is dropped.
#[derive(Clone, Debug)]
pub struct Spore {
    pub(crate) core: Arc<Core>,
    tasks: Arc<Tasks>,
}

/// What all tasks of a node share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) me: NodeId,
    pub(crate) name: String,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) network: NetworkId,
    pub(crate) timing: Timing,
    pub(crate) liveness: Duration,
    pub(crate) report_every: Duration,
    pub(crate) reshape_every: Duration,
    pub(crate) clock: Clock,
    pub(crate) handler: Handler,
    pub(crate) folder: Arc<NodeFolder>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) book: Arc<Book>,
    pub(crate) member: RwLock<Arc<Member>>,
    pub(crate) own: Mutex<NodeReport>,
    /// What has been heard while this node leads.
    pub(crate) pulse: Mutex<Option<Pulse>>,
    /// Somebody new was heard: the leader should look at once.
    pub(crate) nudge: Notify,
}

#[derive(Debug)]
struct Tasks {
    core: Arc<Core>,
    handles: Vec<JoinHandle<()>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.handles.iter().for_each(JoinHandle::abort);
        self.core.mesh.endpoint().close(0u32.into(), b"gone");
        let member = self.core.member();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Not `stop`: a node that is dropped is as good as killed, and writes nothing more.
            runtime.spawn(async move { member.raft.0.shutdown().await });
        }
    }
}

impl Spore {
    pub(crate) fn begin(core: Core) -> Self {
        let core = Arc::new(core);
        let handles = vec![
            tokio::spawn(crate::serve::serve(core.clone())),
            tokio::spawn(crate::reporter::report(core.clone())),
            tokio::spawn(crate::leader::lead(core.clone())),
        ];
        Self { tasks: Arc::new(Tasks { core: core.clone(), handles }), core }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.core.me
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.core.network
    }

    /// Where others reach this node.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.core.addrs
    }

    /// Makes an invitation that lets one node in within `ttl`; its text is what the other node is given.
    ///
    /// # Errors
    /// [`SporeError::Invitation`].
    pub fn invite(&self, ttl: Duration) -> Result<Invitation, SporeError> {
        let core = &self.core;
        let addrs = core.addrs.clone();
        let invitation = Invitation::issue(
            core.folder.identity(),
            core.network,
            addrs,
            core.clock.unix_s(),
            ttl.as_secs(),
        );
        Ok(invitation?)
    }

    /// Asks the arbiter. A read is linearizable: it sees every swap that anybody was told of.
    ///
    /// # Errors
    /// [`SporeError`]: nothing is known about the record, ask again under the same operation id.
    pub async fn answer(&self, vm: VmId, request: Request) -> Result<Reply, SporeError> {
        self.core.answer(vm, request).await
    }

    /// Drops a VM's record, on an operator's explicit order. Returns what it was.
    ///
    /// # Errors
    /// [`SporeError`].
    pub async fn forget(&self, vm: VmId) -> Result<Option<Record>, SporeError> {
        self.drop_record(vm, None).await
    }

    /// Drops a VM's record if it still is the one that was read, because nobody it names can run the VM any more.
    /// `false`: it has changed.
    ///
    /// # Errors
    /// [`SporeError`].
    pub async fn forget_dead(&self, record: &Record) -> Result<bool, SporeError> {
        Ok(self.drop_record(record.vm.clone(), Some(Seen::of(record))).await?.is_some())
    }

    async fn drop_record(&self, vm: VmId, seen: Option<Seen>) -> Result<Option<Record>, SporeError> {
        match self.core.command(Command::Forget(vm, seen)).await? {
            Outcome::Forgotten(record) => Ok(record),
            _ => Ok(None),
        }
    }

    /// The group as its leader sees it; this node's own view while there is none.
    pub async fn status(&self) -> Status {
        match self.core.at_leader(&Ask::Status, limits::ATTEMPT).await {
            Ok(Say::Status(status)) => *status,
            _ => self.core.own_status(),
        }
    }

    /// All nodes of the network, as this node last heard.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<NodeId, NodeEntry> {
        self.state().nodes.clone()
    }

    /// The network's state as this node last heard. Not for decisions: others may have newer.
    #[must_use]
    pub fn state(&self) -> Arc<NetworkState> {
        self.core.member().state.borrow().clone()
    }

    /// Sets what this node reports from now on.
    pub fn report(&self, report: NodeReport) {
        *self.core.own.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }

    /// What all nodes report, as the leader has it.
    ///
    /// # Errors
    /// [`SporeError::NoLeader`].
    pub async fn reports(&self) -> Result<Vec<(NodeId, Reported)>, SporeError> {
        match self.core.at_leader(&Ask::Reports, limits::ARBITER).await? {
            Say::Reports(reports) => Ok(reports),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a request to another node's daemon, which answers with its handler.
    ///
    /// # Errors
    /// [`SporeError`].
    pub async fn request(
        &self,
        node: NodeId,
        request: &Bytes,
        patience: Duration,
    ) -> Result<Bytes, SporeError> {
        let (bytes, most) = (request.len(), limits::REQUEST_BYTES);
        if bytes > most {
            return Err(SporeError::TooLong { what: "a request", bytes, most });
        }
        if node == self.core.me {
            return self.core.handler.answer(node, request.clone()).await.map_err(SporeError::Daemon);
        }
        let addrs = self.core.book.addrs(node).ok_or(MeshError::Unknown(node))?;
        let frame = [&[DAEMON], request.as_ref()].concat();
        let answer = Bytes::from(self.core.mesh.ask(node, &addrs, &frame, patience).await?);
        match answer.first() {
            Some(&DAEMON) => Ok(answer.slice(1..)),
            Some(&OWN) | None => Err(MeshError::Broken(node, "not an answer".to_owned()).into()),
            Some(_) => Err(SporeError::Daemon(String::from_utf8_lossy(&answer[1..]).into_owned())),
        }
    }

    /// Takes a node out of the network. It cannot come back without an invitation.
    ///
    /// # Errors
    /// [`SporeError`].
    pub async fn remove(&self, node: NodeId) -> Result<(), SporeError> {
        self.core.command(Command::Remove(node)).await.map(|_| ())
    }

    /// Leaves the network: hands over the vote, stops, and forgets the network (files are kept aside).
    ///
    /// # Errors
    /// [`SporeError`]; the node is still in the network then.
    pub async fn leave(self) -> Result<(), SporeError> {
        let me = self.core.me;
        self.core.command(Command::Remove(me)).await?;
        let member = self.core.member();
        let id = member.raft_id;
        let wait = member.raft.0.wait(Some(limits::RESHAPE));
        // The membership must be applied, not only proposed: whoever votes now has it only then.
        let out = wait.metrics(
            |m| {
                let votes = m.membership_config.voter_ids().any(|voter| voter == id);
                !votes && m.last_applied >= *m.membership_config.log_id()
            },
            "votes no more",
        );
        let out = out.await;
        if let Err(error) = out {
            tracing::warn!(%error, "left while the vote was still here; the others take it over");
        }
        let core = self.core.clone();
        self.shutdown().await;
        Ok(core.folder.leave_network()?)
    }

    /// Stops the node. It stays in the network and comes back with [`Spore::resume`].
    pub async fn shutdown(self) {
        self.tasks.handles.iter().for_each(JoinHandle::abort);
        self.core.member().stop().await;
        let endpoint = self.core.mesh.endpoint();
        endpoint.close(0u32.into(), b"stopped");
        // Others hear of the close if they can; nobody has to wait long for those who cannot.
        let _ = timeout(limits::CONNECT, endpoint.wait_idle()).await;
    }
}

impl Core {
    pub(crate) fn member(&self) -> Arc<Member> {
        self.member.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Decides about a record, here or at the leader.
    pub(crate) async fn answer(&self, vm: VmId, request: Request) -> Result<Reply, SporeError> {
        match self.at_leader(&Ask::Decide { vm, request }, limits::ARBITER).await? {
            Say::Reply(reply) => Ok(reply),
            Say::Outcome(Outcome::Refused(refused)) => Err(refused.into()),
            other => Err(unexpected(&other)),
        }
    }

    /// Applies a command, here or at the leader.
    pub(crate) async fn command(&self, command: Command) -> Result<Outcome, SporeError> {
        match self.at_leader(&Ask::Command(command), limits::ANSWER).await? {
            Say::Outcome(Outcome::Refused(refused)) => Err(refused.into()),
            Say::Outcome(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks whoever leads, again while that changes. All that is asked so may be asked twice.
    pub(crate) async fn at_leader(&self, ask: &Ask, patience: Duration) -> Result<Say, SporeError> {
        let deadline = Instant::now() + patience;
        let mut why = "none is known".to_owned();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SporeError::NoLeader(why));
            }
            let member = self.member();
            match member.leader() {
                Some(leader) if leader == self.me => {
                    match timeout(left, self.serve_as_leader(self.me, &member, ask.clone())).await {
                        Ok(Say::NotLeader) => "this node leads no more".clone_into(&mut why),
                        Ok(Say::Trouble(trouble)) => why = trouble,
                        Ok(say) => return Ok(say),
                        Err(_) => "this node leads, but too few others answer".clone_into(&mut why),
                    }
                }
                Some(leader) => tokio::select! {
                    said = self.ask(leader, ask, left.min(limits::ATTEMPT)) => match said {
                        Ok(Say::NotLeader) => why = format!("node {leader:?} leads no more"),
                        Ok(Say::Trouble(trouble)) => why = trouble,
                        Ok(say) => return Ok(say),
                        Err(error) => why = error.to_string(),
                    },
                    () = member.deposed(leader) => why = format!("node {leader:?} leads no more"),
                },
                None => {}
            }
            tokio::time::sleep(limits::RETRY).await;
        }
    }

    /// Asks one member.
    pub(crate) async fn ask(&self, node: NodeId, ask: &Ask, patience: Duration) -> Result<Say, MeshError> {
        let addrs = self.book.addrs(node).ok_or(MeshError::Unknown(node))?;
        let bytes = self.mesh.ask(node, &addrs, &encode(ask), patience).await?;
        decode(&bytes).map_err(|why| MeshError::Broken(node, why))
    }
}

fn unexpected(say: &Say) -> SporeError {
    SporeError::NoLeader(format!("it answered {say:?}, which is no answer to this"))
}
