//! One UDP socket per node, over which it speaks all protocols, and the connections to other members.
//!
//! TLS admits any key, because a stranger must be able to show an invitation; what a key may do is decided by protocol
//! afterwards (`serve.rs`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mycelium_ram_core::NodeId;
use quinn::{ClientConfig, Connection, Endpoint, IdleTimeout, TransportConfig, VarInt};
use rhizomorph_link::tls::{AllowList, SERVER_NAME, TlsError, quic_client_config, quic_server_config_of};
use rhizomorph_link::{Identity, PeerKey};
use tokio::time::{Instant, timeout};

use crate::error::StartError;
use crate::limits;

/// Between members: Raft, and the daemons' requests.
pub const NODE_ALPN: &[u8] = b"mycelium-node/1";
/// For whoever holds an invitation.
pub const JOIN_ALPN: &[u8] = b"mycelium-join/1";

/// No answer from another node. Nothing can be concluded from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// It is not known where the node listens.
    #[error("node {0:?} is not known here, so there is no address for it")]
    Unknown(NodeId),
    /// No connection.
    #[error(
        "node {node:?} cannot be reached at {addrs}: {why}; is its daemon running, and does UDP get through?"
    )]
    Unreachable {
        /// Which.
        node: NodeId,
        /// Where.
        addrs: String,
        /// Why not.
        why: String,
    },
    /// No answer in time.
    #[error("node {0:?} did not answer in time")]
    Silent(NodeId),
    /// The connection broke.
    #[error("the connection to node {0:?} broke: {1}")]
    Broken(NodeId, String),
}

/// The socket and the connections.
#[derive(Debug)]
pub(crate) struct Mesh {
    endpoint: Endpoint,
    identity: Identity,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

#[derive(Debug, Default)]
struct Peer {
    connection: tokio::sync::Mutex<Option<Connection>>,
    answered: Mutex<Option<Instant>>,
}

impl Mesh {
    pub(crate) fn bind(identity: &Identity, listen: SocketAddr) -> Result<Self, StartError> {
        let alpns: [&[u8]; 3] = [NODE_ALPN, JOIN_ALPN, mycelium_arbiter::ALPN];
        let mut config = quic_server_config_of(identity, AllowList::from_fn(|_| true), &alpns)?;
        config.transport_config(Arc::new(transport()));
        let endpoint =
            Endpoint::server(config, listen).map_err(|source| StartError::Bind { addr: listen, source })?;
        Ok(Self { endpoint, identity: identity.clone(), peers: Mutex::default() })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks a member, over a connection that is kept.
    pub(crate) async fn ask(
        &self,
        node: NodeId,
        addrs: &[SocketAddr],
        frame: &[u8],
        patience: Duration,
    ) -> Result<Vec<u8>, MeshError> {
        let peer = self.peer(node);
        match timeout(patience, self.exchange(&peer, node, addrs, frame)).await {
            Ok(Ok(answer)) => {
                *peer.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Ok(answer)
            }
            failed => {
                peer.doubt();
                failed.unwrap_or(Err(MeshError::Silent(node)))
            }
        }
    }

    /// Asks once, over a connection of its own, and says goodbye.
    pub(crate) async fn ask_once(
        &self,
        node: NodeId,
        addrs: &[SocketAddr],
        alpn: &[u8],
        frame: &[u8],
    ) -> Result<Vec<u8>, MeshError> {
        let connection = self.dial(node, addrs, alpn).await?;
        let answer = timeout(limits::JOIN, over(&connection, node, frame)).await;
        connection.close(VarInt::from_u32(0), b"done");
        answer.unwrap_or(Err(MeshError::Silent(node)))
    }

    async fn exchange(
        &self,
        peer: &Peer,
        node: NodeId,
        addrs: &[SocketAddr],
        frame: &[u8],
    ) -> Result<Vec<u8>, MeshError> {
        let connection = {
            let mut kept = peer.connection.lock().await;
            match kept.as_ref().filter(|c| c.close_reason().is_none()) {
                Some(connection) => connection.clone(),
                None => {
                    let fresh = self.dial(node, addrs, NODE_ALPN).await?;
                    *peer.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    kept.insert(fresh).clone()
                }
            }
        };
        over(&connection, node, frame).await
    }

    /// The first address that answers the handshake with the right key.
    async fn dial(&self, node: NodeId, addrs: &[SocketAddr], alpn: &[u8]) -> Result<Connection, MeshError> {
        let unreachable = |why: String| {
            let addrs: Vec<_> = addrs.iter().map(ToString::to_string).collect();
            MeshError::Unreachable { node, addrs: addrs.join(", "), why }
        };
        let config = self.client(node, alpn).map_err(|error| unreachable(error.to_string()))?;
        let mut why = "no address is known".to_owned();
        for addr in addrs {
            let dialed = self.endpoint.connect_with(config.clone(), *addr, SERVER_NAME);
            why = match dialed {
                Err(error) => error.to_string(),
                Ok(connecting) => match timeout(limits::CONNECT, connecting).await {
                    Ok(Ok(connection)) => return Ok(connection),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no answer".to_owned(),
                },
            };
        }
        Err(unreachable(why))
    }

    fn client(&self, node: NodeId, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
        let mut config = quic_client_config(&self.identity, PeerKey(node.0), alpn)?;
        config.transport_config(Arc::new(transport()));
        Ok(config)
    }

    fn peer(&self, node: NodeId) -> Arc<Peer> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() > 2 * limits::NODES {
            // Nodes that came and went over the years; the living dial anew.
            peers.clear();
        }
        peers.entry(node).or_default().clone()
    }
}

impl Peer {
    /// Drops a connection over which nothing has come for a while: a restarted process does not know it.
    fn doubt(&self) {
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered.is_some_and(|at| at.elapsed() < limits::STALE) {
            return;
        }
        if let Ok(mut kept) = self.connection.try_lock()
            && let Some(connection) = kept.take()
        {
            connection.close(VarInt::from_u32(0), b"silent");
        }
    }
}

async fn over(connection: &Connection, node: NodeId, frame: &[u8]) -> Result<Vec<u8>, MeshError> {
    let broken = |error: &dyn std::fmt::Display| MeshError::Broken(node, error.to_string());
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| broken(&e))?;
    send.write_all(frame).await.map_err(|e| broken(&e))?;
    send.finish().map_err(|e| broken(&e))?;
    recv.read_to_end(limits::FRAME_BYTES).await.map_err(|e| broken(&e))
}

fn transport() -> TransportConfig {
    let window = VarInt::try_from(limits::FRAME_BYTES).unwrap_or(VarInt::MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(limits::STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(window)
        .receive_window(window)
        .max_idle_timeout(IdleTimeout::try_from(limits::IDLE).ok())
        .keep_alive_interval(Some(limits::KEEP_ALIVE));
    config
}
