//! The runtime API: gRPC on a Unix socket, for a node's daemon, a containerd shim, an operator.

mod console;
#[cfg(feature = "fuzzing")]
mod fuzz;
mod info;
mod policy;
mod service;

#[cfg(feature = "fuzzing")]
pub use fuzz::{fuzz_api, seeds_api};

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use endophyte_api::vm_server::VmServer;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::confine;
use crate::desk::Desk;
use crate::limits::{API_STREAMS, API_WINDOW_BYTES, PARTING};
use endophyte_api::socket::{ApiSocket, SocketError};
use service::Service;

/// Serves until it is dropped; then the last answers leave, streams end, and the socket goes.
#[derive(Debug)]
pub(crate) struct Api {
    ending: watch::Sender<bool>,
    done: Receiver<()>,
    socket: Option<ApiSocket>,
}

impl Api {
    /// Serves on a runtime that outlives it.
    pub(crate) fn on_runtime(path: &Path, desk: Arc<Desk>, runtime: &Handle) -> Result<Self, SocketError> {
        Self::start(path, desk, |serve| drop(runtime.spawn(serve)))
    }

    /// Has a thread of its own go on serving what was begun on `runtime`.
    pub(crate) fn go_on(runtime: Runtime) -> std::io::Result<()> {
        let serve = move || {
            confine::serve();
            runtime.block_on(std::future::pending::<()>());
        };
        std::thread::Builder::new().name("api".into()).spawn(serve).map(drop)
    }

    /// Serves from a thread of its own.
    pub(crate) fn on_thread(path: &Path, desk: Arc<Desk>) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut started = Ok(());
        let api = Self::start(path, desk, |serve| {
            let serve = move || {
                confine::serve();
                runtime.block_on(serve);
            };
            started = std::thread::Builder::new().name("api".into()).spawn(serve).map(drop);
        })?;
        started?;
        Ok(api)
    }

    fn start(
        path: &Path,
        desk: Arc<Desk>,
        spawn: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>),
    ) -> Result<Self, SocketError> {
        let (socket, listener) = ApiSocket::bind(path)?;
        let (ending, end) = watch::channel(false);
        let (tell, done) = channel();
        spawn(Box::pin(async move {
            if let Err(error) = serve(listener, desk, end).await {
                tracing::error!(error = &*error, "the API has ended; the VM goes on");
            }
            let _ = tell.send(());
        }));
        Ok(Self { ending, done, socket: Some(socket) })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.socket.take());
        self.ending.send_replace(true);
        let _ = self.done.recv_timeout(PARTING);
    }
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    desk: Arc<Desk>,
    end: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
    let service = VmServer::new(Service::new(desk, end.clone()));
    Server::default()
        .max_concurrent_streams(API_STREAMS)
        .initial_stream_window_size(API_WINDOW_BYTES)
        .initial_connection_window_size(API_WINDOW_BYTES)
        .serve_with_incoming_shutdown(service, incoming, ended(end))
        .await?;
    Ok(())
}

/// Returns once the process is about to end.
async fn ended(mut end: watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
}
