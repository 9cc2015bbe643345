//! What a node is started with.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mycelium_identity::NodeFolder;
use mycelium_ram_core::NodeId;

use crate::clock::Clock;
use crate::error::StartError;
use crate::raft::Timing;

/// What answers other daemons' requests.
#[derive(Clone)]
pub struct Handler(Arc<HandlerFn>);

type HandlerFn =
    dyn Fn(NodeId, Bytes) -> Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send>> + Send + Sync;

impl Handler {
    /// Calls `answer` with the asking member and its request; an error's text reaches the asker.
    pub fn new<F, A>(answer: F) -> Self
    where
        F: Fn(NodeId, Bytes) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Bytes, String>> + Send + 'static,
    {
        Self(Arc::new(move |from, request| Box::pin(answer(from, request))))
    }

    pub(crate) async fn answer(&self, from: NodeId, request: Bytes) -> Result<Bytes, String> {
        (self.0)(from, request).await
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").finish_non_exhaustive()
    }
}

/// What a node is started with.
#[derive(Debug)]
pub struct SporeConfig {
    /// Its folder, with its key.
    pub folder: NodeFolder,
    /// Its name in the network. A node that comes back keeps the name it joined with.
    pub name: String,
    /// Where it listens (UDP); port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Where others reach it; empty means where it listens.
    pub advertise: Vec<SocketAddr>,
    /// Pace of the Raft group.
    pub timing: Timing,
    /// A node is dead to the leader after this long without a report.
    pub liveness: Duration,
    /// Interval of the reports.
    pub report_every: Duration,
    /// Interval at which the leader looks at the voters.
    pub reshape_every: Duration,
    /// How long a node that comes back asks others before it gives up.
    pub resume_patience: Duration,
    /// The wall clock.
    pub clock: Clock,
    /// Answers other daemons' requests.
    pub handler: Handler,
}

impl SporeConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(folder: NodeFolder, name: impl Into<String>, listen: SocketAddr) -> Self {
        Self {
            folder,
            name: name.into(),
            listen,
            advertise: Vec::new(),
            timing: Timing::default(),
            liveness: Duration::from_secs(2),
            report_every: Duration::from_millis(500),
            reshape_every: Duration::from_millis(250),
            resume_patience: Duration::from_secs(10),
            clock: Clock::system(),
            handler: Handler::new(|_, _| async { Err("this daemon answers no requests".to_owned()) }),
        }
    }

    /// Where others reach a node that is bound to `bound`.
    pub(crate) fn reached_at(&self, bound: SocketAddr) -> Result<Vec<SocketAddr>, StartError> {
        match self.advertise.as_slice() {
            [] if bound.ip().is_unspecified() => Err(StartError::Advertise(bound)),
            [] => Ok(vec![bound]),
            given => {
                let port = |a: &SocketAddr| if a.port() == 0 { bound.port() } else { a.port() };
                Ok(given.iter().map(|a| SocketAddr::new(a.ip(), port(a))).collect())
            }
        }
    }
}
