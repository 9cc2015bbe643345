//! Accepting links: connections come in, are known by their key, say hello, and join their link.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, Endpoint, Incoming, ServerConfig};
use rhizomorph_proto::codec::{Hello, Welcome};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::close::{CloseCode, CloseReason};
use crate::error::ListenError;
use crate::handle::Handle;
use crate::handshake::{self, HelloError};
use crate::identity::Identity;
use crate::limits::{ACCEPT_BACKLOG, ADDRESSES_MAX, HELLO_TIMEOUT, PENDING_MAX};
use crate::link::{Link, Refusal};
use crate::options::LinkOptions;
use crate::peer_key::PeerKey;
use crate::receiver::LinkReceiver;
use crate::registry::{Joined, Registry};
use crate::runtime::Executor;
use crate::sender::LinkSender;
use crate::tls::{self, AllowList};
use crate::{socket, transport};

/// Who listens, for whom, and where.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// Who we are.
    pub identity: Identity,
    /// Whom we let in.
    pub allow: AllowList,
    /// Addresses, each with its own socket; port 0 lets the kernel choose.
    pub binds: Vec<SocketAddr>,
    /// Settings of every accepted link.
    pub options: LinkOptions,
}

/// A link a peer opened.
#[derive(Debug)]
pub struct IncomingLink {
    /// The peer's key, proved.
    pub peer: PeerKey,
    /// What the dialer said the link is for; chosen by the peer.
    pub label: Bytes,
    /// The sending half.
    pub sender: LinkSender,
    /// The receiving half.
    pub receiver: LinkReceiver,
}

/// Accepts links. Dropping it refuses further connections, also redials of open links; open connections go on.
#[derive(Debug)]
pub struct LinkListener {
    addrs: Vec<SocketAddr>,
    accepted: Mutex<mpsc::Receiver<IncomingLink>>,
    loops: Vec<AbortHandle>,
    endpoints: Vec<Endpoint>,
    executor: Executor,
}

impl LinkListener {
    /// Opens the sockets and starts accepting.
    ///
    /// # Errors
    /// [`ListenError`], naming the address.
    pub fn bind(config: ListenConfig) -> Result<Self, ListenError> {
        if !(1..=ADDRESSES_MAX).contains(&config.binds.len()) {
            return Err(ListenError::Addresses(config.binds.len()));
        }
        let mut server = tls::quic_server_config(&config.identity, config.allow, handshake::ALPN)?;
        server.transport_config(transport::connection(config.options.mtu));
        let executor = Executor::new(config.options.runtime)?;
        let endpoints = bind_all(&executor, &config.binds, &config.options, &server)?;
        let addrs = endpoints.iter().zip(&config.binds);
        let addrs = addrs.map(|(endpoint, bind)| endpoint.local_addr().unwrap_or(*bind)).collect();
        let (accepted, incoming) = mpsc::channel(ACCEPT_BACKLOG);
        let door = Arc::new(Door {
            registry: Arc::default(),
            options: config.options,
            executor: executor.clone(),
            accepted,
            pending: Arc::new(Semaphore::new(PENDING_MAX)),
            welcome: Welcome { instance: rand::random() }.encode(),
        });
        let start = |endpoint: &Endpoint| {
            executor.handle().spawn(accept_on(Arc::clone(&door), endpoint.clone())).abort_handle()
        };
        let loops = endpoints.iter().map(start).collect();
        Ok(Self { addrs, accepted: Mutex::new(incoming), loops, endpoints, executor })
    }

    /// The bound addresses, in the order given.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Waits for the next link. `None` when accepting has ended with its runtime.
    pub async fn accept(&self) -> Option<IncomingLink> {
        self.accepted.lock().await.recv().await
    }
}

impl Drop for LinkListener {
    fn drop(&mut self) {
        let _inside = self.executor.handle().enter();
        self.loops.iter().for_each(AbortHandle::abort);
        self.endpoints.iter().for_each(|endpoint| endpoint.set_server_config(None));
    }
}

fn bind_all(
    executor: &Executor,
    binds: &[SocketAddr],
    options: &LinkOptions,
    server: &ServerConfig,
) -> Result<Vec<Endpoint>, ListenError> {
    let _inside = executor.handle().enter();
    let bind = |addr: &SocketAddr| {
        let endpoint = socket::endpoint(*addr, options.mtu, Some(server.clone()));
        endpoint.map_err(|source| ListenError::Bind { addr: *addr, source })
    };
    binds.iter().map(bind).collect()
}

/// What every incoming connection needs.
#[derive(Debug)]
struct Door {
    registry: Arc<Registry>,
    options: LinkOptions,
    executor: Executor,
    accepted: mpsc::Sender<IncomingLink>,
    /// Connections before their hello.
    pending: Arc<Semaphore>,
    welcome: Vec<u8>,
}

async fn accept_on(door: Arc<Door>, endpoint: Endpoint) {
    let local = endpoint.local_addr().ok();
    while let Some(incoming) = endpoint.accept().await {
        let Ok(permit) = Arc::clone(&door.pending).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        // Half full: make strangers prove that they receive at the address they send from.
        if door.pending.available_permits() < PENDING_MAX / 2 && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        door.executor.spawn(Arc::clone(&door).enter(incoming, local, permit));
    }
}

impl Door {
    async fn enter(
        self: Arc<Self>,
        incoming: Incoming,
        local: Option<SocketAddr>,
        permit: OwnedSemaphorePermit,
    ) {
        let remote = incoming.remote_address();
        if let Err(error) = self.admit(incoming, local).await {
            tracing::debug!(%remote, %error, "connection refused");
        }
        drop(permit);
    }

    async fn admit(&self, incoming: Incoming, local: Option<SocketAddr>) -> Result<(), HelloError> {
        let connecting = incoming.accept().map_err(|_| HelloError::Ended)?;
        let connected = tokio::time::timeout(HELLO_TIMEOUT, connecting).await;
        let connection =
            connected.map_err(|_| HelloError::Late(HELLO_TIMEOUT))?.map_err(|_| HelloError::Ended)?;
        let result = self.greet(&connection, local).await;
        if let Err(error) = &result {
            error.code().close(&connection, &error.to_string());
        }
        result
    }

    async fn greet(&self, connection: &Connection, local: Option<SocketAddr>) -> Result<(), HelloError> {
        let peer = tls::peer_key(connection).ok_or(HelloError::Ended)?;
        let Some(_pending) = self.registry.admit(peer) else {
            CloseCode::Limit.close(connection, "too many connections without a hello");
            return Ok(());
        };
        let heard = tokio::time::timeout(HELLO_TIMEOUT, handshake::listen(connection)).await;
        let (hello, mut answer) = heard.map_err(|_| HelloError::Late(HELLO_TIMEOUT))??;
        match self.join(peer, &hello, local, connection) {
            // Fails only with the connection, whose readers see it.
            Ok(()) => drop(answer.write_all(&self.welcome).await.map(|()| answer.finish())),
            Err(code) => code.close(connection, refusal_text(code)),
        }
        Ok(())
    }

    fn join(
        &self,
        peer: PeerKey,
        hello: &Hello,
        local: Option<SocketAddr>,
        connection: &Connection,
    ) -> Result<(), CloseCode> {
        let joined = self.registry.join(peer, hello, &self.options, &self.executor)?;
        let install = |link: &Arc<Link>| {
            link.install(hello.path, hello.attempt, local, connection.clone()).map_err(
                |refusal| match refusal {
                    Refusal::Closed => CloseCode::LinkClosed,
                    Refusal::StaleAttempt => CloseCode::StaleAttempt,
                },
            )
        };
        match joined {
            Joined::Known(link) => install(&link),
            Joined::New(link) => {
                install(&link)?;
                self.announce(&link, hello.label.clone())
            }
        }
    }

    /// Gives a new link to the application.
    fn announce(&self, link: &Arc<Link>, label: Bytes) -> Result<(), CloseCode> {
        let handle = Handle::new(Arc::clone(link));
        let (sender, receiver) = (LinkSender::new(&handle), LinkReceiver::new(&handle));
        let incoming = IncomingLink { peer: link.peer, label, sender, receiver };
        self.accepted.try_send(incoming).map_err(|_| {
            link.close(CloseReason::Local);
            CloseCode::Limit
        })
    }
}

fn refusal_text(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Limit => "too many links; close some first",
        CloseCode::UnknownLink => "this listener does not know the link; dial anew",
        CloseCode::StaleAttempt => "a later dial of this path is in use",
        CloseCode::LinkClosed => "the link is closed",
        CloseCode::Replaced
        | CloseCode::Malformed
        | CloseCode::Version
        | CloseCode::Violation
        | CloseCode::Late => "refused",
    }
}
