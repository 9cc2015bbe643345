//! Answers nodes.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig};
use rhizomorph_link::tls::{AllowList, TlsError, quic_server_config};
use rhizomorph_link::{Identity, PeerKey};
use tokio::sync::Semaphore;

use crate::store::Store;
use crate::wire::{Answer, Question, decode, encode};
use crate::{ALPN, limits};

/// The arbiter could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on {addr}: {source}; is another process there?")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A listening arbiter. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    store: Arc<Mutex<Store>>,
}

impl Server {
    /// Listens on `addr` for the nodes in `allow`. Call inside a tokio runtime.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn bind(
        identity: &Identity,
        allow: AllowList,
        addr: SocketAddr,
        store: Store,
    ) -> Result<Self, ServeError> {
        let mut config = quic_server_config(identity, allow, ALPN)?;
        config.transport_config(Arc::new(transport()));
        let endpoint = Endpoint::server(config, addr).map_err(|source| ServeError::Bind { addr, source })?;
        Ok(Self { endpoint, store: Arc::new(Mutex::new(store)) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket has no address any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Answers until dropped.
    pub async fn serve(&self) {
        let room = Arc::new(Semaphore::new(limits::CONNECTIONS));
        while let Some(incoming) = self.endpoint.accept().await {
            let Ok(permit) = room.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let store = self.store.clone();
            tokio::spawn(async move {
                let _permit = permit;
                match incoming.await {
                    Ok(connection) => serve_connection(&connection, &store).await,
                    Err(error) => tracing::debug!(%error, "a handshake failed"),
                }
            });
        }
    }
}

/// QUIC settings of both ends.
pub(crate) fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(limits::STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .max_idle_timeout(IdleTimeout::try_from(limits::IDLE).ok())
        .keep_alive_interval(Some(limits::KEEP_ALIVE));
    config
}

async fn serve_connection(connection: &quinn::Connection, store: &Arc<Mutex<Store>>) {
    let Some(peer) = rhizomorph_link::tls::peer_key(connection) else { return };
    while let Ok((send, recv)) = connection.accept_bi().await {
        let store = store.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_question(peer, send, recv, store).await {
                tracing::warn!(%peer, %error, "a question was not answered");
            }
        });
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn serve_question(
    peer: PeerKey,
    mut send: SendStream,
    mut recv: RecvStream,
    store: Arc<Mutex<Store>>,
) -> Result<(), AnyError> {
    let question = recv.read_to_end(limits::FRAME_BYTES).await?;
    let answer = match decode::<Question>(&question) {
        Ok(question) if speaks_for(&question, peer.0) => {
            tokio::task::spawn_blocking(move || {
                // A panic while the lock was held cannot have torn the store: it is on disk, replaced atomically.
                let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
                match store.answer(&question.vm, &question.ask) {
                    Ok(reply) => Answer::Reply(reply),
                    Err(error) => Answer::Trouble(error.to_string()),
                }
            })
            .await?
        }
        Ok(_) => Answer::Trouble("the proposer is not the node that asks".to_owned()),
        Err(error) => Answer::Trouble(error.to_string()),
    };
    send.write_all(&encode(&answer)?).await?;
    send.finish()?;
    Ok(())
}

/// Whether the holder of the key `peer` may ask this: a node proposes in its own name only.
#[must_use]
pub fn speaks_for(question: &Question, peer: [u8; 32]) -> bool {
    match &question.ask {
        mycelium_ram_core::settle::Request::Swap(swap) => swap.proposer.node.0 == peer,
        mycelium_ram_core::settle::Request::Read => true,
    }
}
