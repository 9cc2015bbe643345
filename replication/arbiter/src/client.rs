//! Asks the arbiter: the first of several that answers. All of them must be one arbiter (members of one network), so it does
//! not matter which.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mycelium_ram::ports::Arbiter;
use mycelium_ram_core::VmId;
use mycelium_ram_core::settle::{Reply, Request};
use quinn::{ClientConfig, Connection, Endpoint};
use rhizomorph_link::tls::{SERVER_NAME, TlsError, quic_client_config};
use rhizomorph_link::{Identity, Ticket};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use crate::server::transport;
use crate::wire::{Answer, Question, WireError, decode, encode};
use crate::{ALPN, limits};

/// A question got no usable answer. Nothing can be concluded from it about the record.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection.
    #[error(
        "the arbiter at {addr} cannot be reached: {why}; is it running, and does it allow this node's key?"
    )]
    Unreachable {
        /// Where it should be.
        addr: SocketAddr,
        /// Why not.
        why: String,
    },
    /// No answer in time.
    #[error("the arbiter did not answer within {} ms", limits::ANSWER.as_millis())]
    Silent,
    /// The connection broke.
    #[error("the connection to the arbiter broke: {0}")]
    Broken(String),
    /// Nonsense.
    #[error("the arbiter's answer makes no sense: {0}")]
    Wire(#[from] WireError),
    /// It could not deal with the question.
    #[error("the arbiter could not deal with the question: {0}")]
    Trouble(String),
}

/// A way to the arbiter, about one VM. Cheap to clone; clones agree on whom to ask first.
#[derive(Clone, Debug)]
pub struct Client {
    ways: Arc<[Way]>,
    /// Which way answered last.
    first: Arc<AtomicUsize>,
    vm: VmId,
}

/// One address of one ticket.
#[derive(Debug)]
struct Way {
    endpoint: Endpoint,
    config: ClientConfig,
    addr: SocketAddr,
}

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No socket.
    #[error("cannot open a socket for the arbiter: {0}")]
    Socket(#[from] std::io::Error),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody to ask.
    #[error("no arbiter is named; give at least one as KEY@ADDRESS")]
    NoArbiter,
}

impl Client {
    /// Prepares to ask the arbiter behind these tickets, all their addresses in turn. Call inside a tokio runtime.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(identity: &Identity, arbiters: &[Ticket], vm: VmId) -> Result<Self, SetupError> {
        let mut sockets = Sockets::default();
        let mut ways = Vec::new();
        for ticket in arbiters {
            let mut config = quic_client_config(identity, ticket.key, ALPN)?;
            config.transport_config(Arc::new(transport()));
            for addr in &ticket.addrs {
                ways.push(Way { endpoint: sockets.of(*addr)?, config: config.clone(), addr: *addr });
            }
        }
        if ways.is_empty() {
            return Err(SetupError::NoArbiter);
        }
        Ok(Self { ways: ways.into(), first: Arc::default(), vm })
    }

    /// Asks once, over a connection of its own; the next one is asked when one does not answer.
    ///
    /// # Errors
    /// [`AskError`] of the last one asked.
    pub async fn ask(&self, request: Request) -> Result<Reply, AskError> {
        let mut turn = 1;
        loop {
            match self.ask_first(request.clone()).await {
                Err(_) if turn < self.ways.len() => turn += 1,
                settled => return settled,
            }
        }
    }

    async fn ask_first(&self, request: Request) -> Result<Reply, AskError> {
        let way = self.way();
        let answered = async {
            let connection = self.connect(way).await?;
            let reply = self.ask_over(&connection, request).await;
            connection.close(0u32.into(), b"done");
            reply
        };
        let answered = answered.await;
        if answered.is_err() {
            self.move_on(way);
        }
        answered
    }

    fn way(&self) -> usize {
        self.first.load(Ordering::Relaxed) % self.ways.len()
    }

    /// `from` did not answer. Several questions may find that out at once; only the first of them moves on.
    fn move_on(&self, from: usize) {
        let next = (from + 1) % self.ways.len();
        let _ = self.first.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Keeps a connection and asks whatever comes; each reply goes to `on_reply`. The task ends when the returned port
    /// is dropped.
    pub fn start(self, on_reply: impl Fn(Reply) + Send + Sync + 'static) -> Arc<Port> {
        let (send, recv) = mpsc::channel(limits::QUEUE);
        tokio::spawn(self.serve(recv, Arc::new(on_reply)));
        Arc::new(Port { send })
    }

    async fn serve(self, mut requests: mpsc::Receiver<Request>, on_reply: Arc<dyn Fn(Reply) + Send + Sync>) {
        loop {
            let way = self.way();
            let connection = match self.connect(way).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, "no way to the arbiter yet");
                    self.move_on(way);
                    if requests.is_closed() {
                        return;
                    }
                    sleep(limits::RETRY).await;
                    continue;
                }
            };
            let failed = Arc::new(Notify::new());
            tokio::select! {
                _ = connection.closed() => self.move_on(way),
                // With one way only, another connection over it would lead to the same silence.
                () = failed.notified(), if self.ways.len() > 1 => self.move_on(way),
                () = self.pump(&connection, &mut requests, &on_reply, &failed) => return,
            }
        }
    }

    /// Ends when nobody asks any more. The core asks again what failed, by then over the next way.
    async fn pump(
        &self,
        connection: &Connection,
        requests: &mut mpsc::Receiver<Request>,
        on_reply: &Arc<dyn Fn(Reply) + Send + Sync>,
        failed: &Arc<Notify>,
    ) {
        while let Some(request) = requests.recv().await {
            let (client, connection) = (self.clone(), connection.clone());
            let (on_reply, failed) = (on_reply.clone(), failed.clone());
            tokio::spawn(async move {
                match client.ask_over(&connection, request).await {
                    Ok(reply) => on_reply(reply),
                    Err(error) => {
                        tracing::debug!(%error, "the arbiter did not answer");
                        failed.notify_one();
                    }
                }
            });
        }
    }

    async fn connect(&self, way: usize) -> Result<Connection, AskError> {
        let Way { endpoint, config, addr } = &self.ways[way];
        let unreachable = |why: String| AskError::Unreachable { addr: *addr, why };
        let connecting = endpoint
            .connect_with(config.clone(), *addr, SERVER_NAME)
            .map_err(|error| unreachable(error.to_string()))?;
        match timeout(limits::CONNECT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable("no answer".to_owned())),
        }
    }

    async fn ask_over(&self, connection: &Connection, request: Request) -> Result<Reply, AskError> {
        let question = encode(&Question { vm: self.vm.clone(), ask: request })?;
        let exchange = async {
            let (mut send, mut recv) = connection.open_bi().await.map_err(broken)?;
            send.write_all(&question).await.map_err(broken)?;
            send.finish().map_err(broken)?;
            recv.read_to_end(limits::FRAME_BYTES).await.map_err(broken)
        };
        let bytes = timeout(limits::ANSWER, exchange).await.map_err(|_| AskError::Silent)??;
        match decode(&bytes)? {
            Answer::Reply(reply) => Ok(reply),
            Answer::Trouble(why) => Err(AskError::Trouble(why)),
        }
    }
}

/// One socket for each family of addresses that is needed.
#[derive(Default)]
struct Sockets {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

impl Sockets {
    fn of(&mut self, addr: SocketAddr) -> std::io::Result<Endpoint> {
        let (socket, any): (_, SocketAddr) = match addr {
            SocketAddr::V4(_) => (&mut self.v4, ([0; 4], 0).into()),
            SocketAddr::V6(_) => (&mut self.v6, ([0u16; 8], 0).into()),
        };
        match socket {
            Some(endpoint) => Ok(endpoint.clone()),
            None => Ok(socket.insert(Endpoint::client(any)?).clone()),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> AskError {
    AskError::Broken(error.to_string())
}

/// The replication driver's way to the arbiter.
#[derive(Debug)]
pub struct Port {
    send: mpsc::Sender<Request>,
}

impl Arbiter for Port {
    fn ask(&self, request: Request) {
        // A full queue means the arbiter has not been reachable for a while: the core asks again.
        let _ = self.send.try_send(request);
    }
}
