//! Raft's way to its other members, over the mesh.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    Fatal, InstallSnapshotError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{Snapshot, Vote};

use crate::book::Book;
use crate::mesh::Mesh;
use crate::raft::{RaftId, RaftNode, Types};
use crate::wire::{Ask, RaftRpc, RaftSay, Say, decode, encode};

/// Makes one link per member.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) book: Arc<Book>,
    pub(crate) group: u64,
}

/// The way to one member.
#[derive(Debug)]
pub(crate) struct MemberLink {
    links: Links,
    to: RaftId,
    node: RaftNode,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = MemberLink;

    async fn new_client(&mut self, to: RaftId, node: &RaftNode) -> MemberLink {
        MemberLink { links: self.clone(), to, node: node.clone() }
    }
}

impl MemberLink {
    async fn call(&self, rpc: RaftRpc, patience: Duration) -> Result<RaftSay, Unreachable> {
        let frame = encode(&Ask::Raft { group: self.links.group, to: self.to, rpc });
        let addrs: Vec<SocketAddr> = match self.links.book.addrs(self.node.key) {
            Some(addrs) => addrs,
            None => vec![self.node.addr],
        };
        let answer = self.links.mesh.ask(self.node.key, &addrs, &frame, patience).await;
        let bytes = answer.map_err(|error| Unreachable::new(&error))?;
        match decode(&bytes) {
            Ok(Say::Raft(say)) => Ok(say),
            Ok(Say::Trouble(why)) | Err(why) => Err(unreachable(why)),
            Ok(_) => Err(unreachable("an answer to something else".to_owned())),
        }
    }
}

fn unreachable(why: String) -> Unreachable {
    Unreachable::new(&std::io::Error::other(why))
}

type Failed<E = openraft::error::Infallible> = RPCError<RaftId, RaftNode, RaftError<RaftId, E>>;

impl RaftNetwork<Types> for MemberLink {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, Failed> {
        match self.call(RaftRpc::Append(rpc), option.hard_ttl()).await? {
            RaftSay::Append(answer) => Ok(answer),
            _ => Err(unreachable("not an answer to entries".to_owned()).into()),
        }
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<RaftId>, Failed<InstallSnapshotError>> {
        // `full_snapshot` below sends snapshots whole, so openraft never calls this.
        Err(unreachable("snapshots are not sent in pieces".to_owned()).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<RaftId>,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<Types, Fatal<RaftId>>> {
        let state = String::from_utf8(snapshot.snapshot.into_inner())
            .map_err(|error| unreachable(error.to_string()))?;
        let rpc = RaftRpc::Snapshot { vote, meta: snapshot.meta, state };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            said = self.call(rpc, option.hard_ttl()) => match said? {
                RaftSay::Snapshot(vote) => Ok(SnapshotResponse::new(vote)),
                _ => Err(unreachable("not an answer to a snapshot".to_owned()).into()),
            },
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, Failed> {
        match self.call(RaftRpc::Vote(rpc), option.hard_ttl()).await? {
            RaftSay::Vote(answer) => Ok(answer),
            _ => Err(unreachable("not an answer to a vote".to_owned()).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(100)))
    }
}
