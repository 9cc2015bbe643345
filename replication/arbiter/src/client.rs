//! Asks the arbiter.

use std::net::SocketAddr;
use std::sync::Arc;

use mycelium_ram::ports::Arbiter;
use mycelium_ram_core::VmId;
use mycelium_ram_core::settle::{Reply, Request};
use quinn::{Connection, Endpoint};
use rhizomorph_link::tls::{SERVER_NAME, TlsError, quic_client_config};
use rhizomorph_link::{Identity, Ticket};
use tokio::sync::mpsc;
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

/// A way to one arbiter, about one VM. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    addr: SocketAddr,
    vm: VmId,
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
}

impl Client {
    /// Prepares to ask the arbiter of that ticket (its first address). Call inside a tokio runtime.
    ///
    /// # Errors
    /// [`SetupError`].
    ///
    /// # Panics
    /// Never: a ticket has at least one address.
    pub fn new(identity: &Identity, arbiter: &Ticket, vm: VmId) -> Result<Self, SetupError> {
        let addr = *arbiter.addrs.first().expect("a ticket has at least one address");
        let any: SocketAddr = if addr.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let mut config = quic_client_config(identity, arbiter.key, ALPN)?;
        config.transport_config(Arc::new(transport()));
        let mut endpoint = Endpoint::client(any)?;
        endpoint.set_default_client_config(config);
        Ok(Self { endpoint, addr, vm })
    }

    /// Asks once, over a connection of its own.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, request: Request) -> Result<Reply, AskError> {
        let connection = self.connect().await?;
        let reply = self.ask_over(&connection, request).await;
        connection.close(0u32.into(), b"done");
        reply
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
            let connection = match self.connect().await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, "no way to the arbiter yet");
                    if requests.is_closed() {
                        return;
                    }
                    sleep(limits::RETRY).await;
                    continue;
                }
            };
            tokio::select! {
                _ = connection.closed() => {}
                () = self.pump(&connection, &mut requests, &on_reply) => return,
            }
        }
    }

    /// Ends when nobody asks any more.
    async fn pump(
        &self,
        connection: &Connection,
        requests: &mut mpsc::Receiver<Request>,
        on_reply: &Arc<dyn Fn(Reply) + Send + Sync>,
    ) {
        while let Some(request) = requests.recv().await {
            let (client, connection, on_reply) = (self.clone(), connection.clone(), on_reply.clone());
            tokio::spawn(async move {
                match client.ask_over(&connection, request).await {
                    Ok(reply) => on_reply(reply),
                    Err(error) => tracing::debug!(%error, "the arbiter did not answer"),
                }
            });
        }
    }

    async fn connect(&self) -> Result<Connection, AskError> {
        let unreachable = |why: String| AskError::Unreachable { addr: self.addr, why };
        let connecting =
            self.endpoint.connect(self.addr, SERVER_NAME).map_err(|error| unreachable(error.to_string()))?;
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
