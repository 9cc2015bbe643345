//! The daemon from start to end.

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use endophyte_api::socket::{ApiSocket, SocketError};
use mycelium_identity::{FolderError, NodeFolder};
use mycelium_ram_core::NodeId;
use mycelium_spores::{Handler, NodeReport, Spore, SporeConfig, StartError};
use tokio::net::UnixListener;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::UnixListenerStream;

use crate::api::NodeService;
use crate::config::NodeConfig;
use crate::peer::{Ask, Told, decode, encode};
use crate::vms::{VmError, Vms, Wish};
use crate::{capacity, limits};

/// The daemon could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its network.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Files and threads.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Serving.
    #[error("the API has ended: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The daemon's state.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) config: NodeConfig,
    pub(crate) vms: Arc<Vms>,
    /// The node's place in a network, while it has one; for handlers, which must not wait.
    spore: Mutex<Option<Arc<Spore>>>,
    /// One change of membership at a time.
    changing: AsyncMutex<()>,
    /// The folder, while no spore holds it.
    folder: Mutex<Option<NodeFolder>>,
    node: NodeId,
}

/// Runs a daemon until `stop` is set. VMs go on without it.
///
/// # Errors
/// [`DaemonError`].
pub async fn run(config: NodeConfig, mut stop: watch::Receiver<bool>) -> Result<(), DaemonError> {
    let folder = NodeFolder::open(&config.folder)?;
    let dir = config.api.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let (_socket, listener) = ApiSocket::bind(&config.api)?;
    let node = NodeId(folder.identity().peer_key().0);
    let was_member = folder.network()?.is_some();
    let daemon = Arc::new(Daemon {
        vms: Arc::new(Vms::new(config.clone())),
        config,
        spore: Mutex::new(None),
        changing: AsyncMutex::new(()),
        folder: Mutex::new(Some(folder)),
        node,
    });
    if was_member {
        daemon.clone().come_back();
    }
    tokio::spawn(report(daemon.clone()));
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
    let ended = async move {
        if stop.wait_for(|stop| *stop).await.is_err() {
            pending::<()>().await;
        }
    };
    tonic::transport::Server::default()
        .max_concurrent_streams(limits::API_STREAMS)
        .serve_with_incoming_shutdown(NodeService::server(daemon.clone()), incoming, ended)
        .await?;
    daemon.end().await;
    Ok(())
}

impl Daemon {
    /// The node's place in its network.
    pub(crate) fn spore(&self) -> Option<Arc<Spore>> {
        self.spore.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Returns to the network this node was in; again and again, because the others may start later than this one.
    fn come_back(self: Arc<Self>) {
        tokio::spawn(async move {
            loop {
                match self.enter(Spore::resume).await {
                    Ok(_) => return,
                    Err(error) => tracing::warn!(%error, "not back in the network yet"),
                }
                sleep(limits::REPORT).await;
                if self.spore().is_some() {
                    return;
                }
            }
        });
    }

    /// Enters a network in one way or another.
    pub(crate) async fn enter<F, S>(&self, way: F) -> Result<Arc<Spore>, DaemonError>
    where
        F: FnOnce(SporeConfig) -> S,
        S: Future<Output = Result<Spore, StartError>>,
    {
        let _one = self.changing.lock().await;
        if let Some(spore) = self.spore() {
            return Err(StartError::InNetwork(spore.network().short()).into());
        }
        let held = self.folder.lock().unwrap_or_else(PoisonError::into_inner).take();
        let folder = held.map_or_else(|| NodeFolder::open(&self.config.folder), Ok)?;
        let mut config = SporeConfig::new(folder, self.config.name.clone(), self.config.listen);
        config.advertise = self.config.advertise.clone();
        let vms = self.vms.clone();
        // Weak: the spore owns the handler, and would own itself.
        let place = Arc::new(Mutex::new(Weak::<Spore>::new()));
        let seen = place.clone();
        config.handler = Handler::new(move |from, request| {
            let spore = seen.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
            answer(vms.clone(), spore, from, request)
        });
        let spore = match way(config).await {
            Ok(spore) => Arc::new(spore),
            Err(error) => {
                free_again(self.config.listen).await;
                // The spore had the folder; without one the daemon must hold it again.
                let folder = NodeFolder::open(&self.config.folder).ok();
                *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = folder;
                return Err(error.into());
            }
        };
        // Before anybody can ask: what is not found again yet must not be called gone.
        self.vms.adopt(&spore).await;
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&spore);
        *self.spore.lock().unwrap_or_else(PoisonError::into_inner) = Some(spore.clone());
        self.tell(&spore);
        Ok(spore)
    }

    /// Takes the node out of its network.
    pub(crate) async fn leave(&self) -> Result<(), VmError> {
        let _one = self.changing.lock().await;
        if let Some(vm) = self.vms.list().into_iter().find(|vm| vm.role != "ended") {
            return Err(VmError::Runs(vm.name));
        }
        let spore = self.spore().ok_or(VmError::Outside)?;
        Spore::clone(&spore).leave().await.map_err(|e| VmError::Network(e.to_string()))?;
        self.spore.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(spore);
        free_again(self.config.listen).await;
        Ok(())
    }

    /// Sets what the network hears of this node.
    fn tell(&self, spore: &Spore) {
        let extra = serde_json::json!({ "vms": self.vms.list() });
        spore.report(NodeReport { extra, ..capacity::look() });
    }

    async fn end(&self) {
        let spore = self.spore.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(spore);
    }
}

/// Waits until an attempt that failed has let go of the address, which QUIC does in its own time.
async fn free_again(listen: SocketAddr) {
    let deadline = Instant::now() + limits::LET_GO;
    while std::net::UdpSocket::bind(listen).is_err() && Instant::now() < deadline {
        sleep(limits::PROCESS_LOOK).await;
    }
}

/// Keeps the network informed of this node.
async fn report(daemon: Arc<Daemon>) {
    let mut ticks = tokio::time::interval(limits::REPORT);
    loop {
        ticks.tick().await;
        if let Some(spore) = daemon.spore() {
            daemon.vms.sweep();
            daemon.tell(&spore);
        }
    }
}

/// Answers another node's daemon.
async fn answer(
    vms: Arc<Vms>,
    spore: Option<Arc<Spore>>,
    from: NodeId,
    request: Bytes,
) -> Result<Bytes, String> {
    let spore = spore.ok_or("this daemon is just starting; ask again")?;
    let told = match decode::<Ask>(&request)? {
        Ask::StartPassive { spec, on_loss, .. } => {
            let wish = Wish { spec: &spec, on_loss: &on_loss, disks: None };
            Told::Ticket(vms.hold(&spore, from, &wish).await.map_err(|e| e.to_string())?)
        }
        Ask::StartPassiveWithDisks { spec, on_loss, mark, disks, .. } => {
            let wish = Wish { spec: &spec, on_loss: &on_loss, disks: Some((&mark, &disks)) };
            Told::Ticket(vms.hold(&spore, from, &wish).await.map_err(|e| e.to_string())?)
        }
        Ask::StopPassive { vm } => {
            vms.release(&vm).await.map_err(|e| e.to_string())?;
            Told::Done
        }
        Ask::UsePassive { vm } => {
            let keeper = vms.find(&vm).map_err(|e| e.to_string())?;
            Told::Ticket(keeper.serve_active(from).await.ok_or("it is no passive any more")?)
        }
        Ask::Holds { vm } => Told::Holds(vms.holds(&vm)),
    };
    Ok(encode(&told))
}
