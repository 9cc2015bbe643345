//! Opening a link, and keeping each of its paths connected.
//!
//! ```text
//!             ┌──────────── pause, doubling ─────────────┐
//!             v                                          │ failed
//!   dial ── wants a connection ── attempt (2 s at most) ─┴── installed ── lost, or silent too long ──┐
//!             ^                                                                                      │
//!             └──────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quinn::{ClientConfig, Connection, Endpoint};
use rand::RngCore;
use rhizomorph_proto::backoff::Backoff;
use rhizomorph_proto::codec::Hello;
use rhizomorph_proto::ids::{LinkId, PathId};
use tokio::sync::{OnceCell, mpsc};

use crate::close::{CloseCode, CloseReason};
use crate::error::{DialError, FailReason, PathFailure};
use crate::handle::Handle;
use crate::identity::Identity;
use crate::limits::{ATTEMPT_TIMEOUT, LABEL_MAX, PATHS_MAX, STABLE_AFTER};
use crate::link::{Link, Refusal};
use crate::options::LinkOptions;
use crate::peer_key::PeerKey;
use crate::receiver::LinkReceiver;
use crate::runtime::Executor;
use crate::sender::LinkSender;
use crate::{handshake, socket, tls, transport};

/// One way to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSpec {
    /// Address to send from; `None` leaves it to the kernel's routes.
    pub local: Option<SocketAddr>,
    /// The peer's address.
    pub remote: SocketAddr,
}

impl From<SocketAddr> for PathSpec {
    fn from(remote: SocketAddr) -> Self {
        Self { local: None, remote }
    }
}

/// Whom to dial and how.
#[derive(Clone, Debug)]
pub struct DialConfig {
    /// Who we are.
    pub identity: Identity,
    /// The only key we accept at the other end.
    pub peer: PeerKey,
    /// The paths, 1 to [`PATHS_MAX`]; each gets its own socket.
    pub paths: Vec<PathSpec>,
    /// Told to the accepting application, at most [`LABEL_MAX`] bytes.
    pub label: Bytes,
    /// Settings.
    pub options: LinkOptions,
}

/// Opens a link: returns as soon as its first path is up; the others follow, and lost ones are redialed until the
/// link is closed.
///
/// # Errors
/// [`DialError::Unreachable`] when every path was refused for good, or none came up within
/// [`LinkOptions::dial_timeout`]; it names each address and its reason.
pub async fn dial(config: DialConfig) -> Result<(LinkSender, LinkReceiver), DialError> {
    if !(1..=PATHS_MAX).contains(&config.paths.len()) {
        return Err(DialError::Paths(config.paths.len()));
    }
    if config.label.len() > LABEL_MAX {
        return Err(DialError::Label(config.label.len()));
    }
    let mut client = tls::quic_client_config(&config.identity, config.peer, handshake::ALPN)?;
    client.transport_config(transport::connection(config.options.mtu));
    let executor = Executor::new(config.options.runtime)?;
    let link = Link::start(random_id(), config.peer, config.options.clone(), executor.clone());
    let handle = Handle::new(Arc::clone(&link));
    let reports = start_paths(&link, &config, &client);
    let (first, up) = tokio::sync::oneshot::channel();
    let (timeout, remotes) = (config.options.dial_timeout, config.paths);
    executor.spawn(async move {
        let mut wait = FirstPath::new(&remotes, reports);
        let result = tokio::time::timeout(timeout, wait.run()).await.unwrap_or(Err(()));
        // The caller may have given up.
        let _ = first.send(result.map_err(|()| DialError::Unreachable(wait.failures)));
    });
    up.await.unwrap_or_else(|_| Err(DialError::Unreachable(Vec::new())))?;
    Ok((LinkSender::new(&handle), LinkReceiver::new(&handle)))
}

fn random_id() -> LinkId {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    LinkId(id)
}

type Report = (PathId, Result<(), FailReason>);

fn start_paths(link: &Arc<Link>, config: &DialConfig, client: &ClientConfig) -> mpsc::Receiver<Report> {
    let (report, reports) = mpsc::channel(PATHS_MAX);
    let instance = Arc::new(OnceCell::new());
    for (number, spec) in (0..).zip(&config.paths) {
        let Some(path) = PathId::new(number) else { break };
        link.announce(path, spec.local, spec.remote);
        let dialer = PathDialer {
            link: Arc::clone(link),
            path,
            spec: *spec,
            label: config.label.clone(),
            client: client.clone(),
            instance: Arc::clone(&instance),
            endpoint: None,
            attempt: 0,
            report: report.clone(),
        };
        link.executor.spawn(dialer.run());
    }
    reports
}

/// Waits for the first path, gathering why others fail.
struct FirstPath {
    failures: Vec<PathFailure>,
    reports: mpsc::Receiver<Report>,
}

impl FirstPath {
    fn new(paths: &[PathSpec], reports: mpsc::Receiver<Report>) -> Self {
        let failure = |spec: &PathSpec| PathFailure { remote: spec.remote, reason: FailReason::NoAnswer };
        Self { failures: paths.iter().map(failure).collect(), reports }
    }

    /// `Err` when no path can come up as things stand.
    async fn run(&mut self) -> Result<(), ()> {
        while let Some((path, result)) = self.reports.recv().await {
            match result {
                Ok(()) => return Ok(()),
                Err(reason) => self.failures[path.index()].reason = reason,
            }
            if self.failures.iter().all(|failure| failure.reason.is_final()) {
                return Err(());
            }
        }
        Err(())
    }
}

/// Keeps one path connected.
struct PathDialer {
    link: Arc<Link>,
    path: PathId,
    spec: PathSpec,
    label: Bytes,
    client: ClientConfig,
    /// The listening process first met, shared by all paths: another one does not have this link's state.
    instance: Arc<OnceCell<u64>>,
    endpoint: Option<Endpoint>,
    attempt: u32,
    report: mpsc::Sender<Report>,
}

impl PathDialer {
    async fn run(mut self) {
        let link = Arc::clone(&self.link);
        tokio::select! {
            () = link.wait_closed() => {}
            () = self.keep_connected() => {}
        }
    }

    /// Returns only when the link is closed.
    async fn keep_connected(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            self.wait_until_wanted().await;
            let started = Instant::now();
            let result = self.attempt().await;
            let failed = result.is_err();
            if let Err(reason) = &result {
                tracing::debug!(link = %self.link.id, path = %self.path, %reason, "dial failed");
            }
            // Full once the dial is decided and nobody reads any more.
            let _ = self.report.try_send((self.path, result));
            if failed {
                self.after_failure();
            } else {
                self.wait_until_wanted().await;
                if started.elapsed() > STABLE_AFTER {
                    backoff.reset();
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn wait_until_wanted(&self) {
        loop {
            let redial = self.link.redial.notified();
            tokio::pin!(redial);
            redial.as_mut().enable();
            if self.link.wants_dial(self.path) {
                return;
            }
            redial.await;
        }
    }

    /// A socket may be the reason (its address gone from the machine): the next attempt makes a new one, unless an
    /// older connection still lives on it.
    fn after_failure(&mut self) {
        if !self.link.is_connected(self.path) {
            self.endpoint = None;
        }
    }

    async fn attempt(&mut self) -> Result<(), FailReason> {
        self.attempt = self.attempt.saturating_add(1);
        match tokio::time::timeout(ATTEMPT_TIMEOUT, self.connect()).await {
            Ok(result) => result,
            Err(_) => Err(FailReason::NoAnswer),
        }
    }

    async fn connect(&mut self) -> Result<(), FailReason> {
        let endpoint = self.endpoint()?;
        let connecting = endpoint.connect_with(self.client.clone(), self.spec.remote, tls::SERVER_NAME);
        let connecting = connecting.map_err(|error| FailReason::Local(error.to_string()))?;
        let connection = connecting.await.map_err(|error| handshake::explain(&error))?;
        let result = self.join(&endpoint, &connection).await;
        if result.is_err() {
            CloseCode::Malformed.close(&connection, "the hello exchange failed");
        }
        result
    }

    async fn join(&self, endpoint: &Endpoint, connection: &Connection) -> Result<(), FailReason> {
        let hello = Hello {
            link: self.link.id,
            path: self.path,
            attempt: self.attempt,
            rejoin: self.instance.initialized(),
            label: self.label.clone(),
        };
        let greeted = handshake::greet(connection, &hello).await;
        if self.is_forgotten(&greeted).await {
            self.link.close(CloseReason::PeerRestarted);
            return Err(FailReason::Forgotten);
        }
        greeted?;
        let local = endpoint.local_addr().ok();
        match self.link.install(self.path, self.attempt, local, connection.clone()) {
            Ok(()) => Ok(()),
            Err(Refusal::Closed | Refusal::StaleAttempt) => Err(FailReason::Other("no longer wanted".into())),
        }
    }

    /// Whether the answer comes from a process that does not have this link's state.
    async fn is_forgotten(&self, greeted: &Result<rhizomorph_proto::codec::Welcome, FailReason>) -> bool {
        match greeted {
            Ok(welcome) => {
                *self.instance.get_or_init(|| async { welcome.instance }).await != welcome.instance
            }
            Err(reason) => *reason == FailReason::Forgotten,
        }
    }

    fn endpoint(&mut self) -> Result<Endpoint, FailReason> {
        if let Some(endpoint) = &self.endpoint {
            return Ok(endpoint.clone());
        }
        let any = match self.spec.remote {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let local = self.spec.local.unwrap_or(any);
        let endpoint = socket::endpoint(local, self.link.options.mtu, None);
        let endpoint = endpoint.map_err(|error| FailReason::Local(format!("{local}: {error}")))?;
        Ok(self.endpoint.insert(endpoint).clone())
    }
}
