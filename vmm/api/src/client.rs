//! Reaching a VM's process.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::{Service, service_fn};

/// A client of one VM's process; clones share the connection.
pub type VmClient = crate::vm_client::VmClient<Channel>;

/// Connects to the socket that a process was given with `--api`.
///
/// # Errors
/// When nobody listens there, or the socket is not ours to use.
pub async fn connect(path: impl Into<PathBuf>) -> Result<VmClient, Error> {
    Ok(VmClient::new(channel(path).await?))
}

/// A client of a process that may not answer yet; it connects with the first question. Call inside a tokio runtime.
pub fn connect_later(path: impl Into<PathBuf>) -> VmClient {
    VmClient::new(endpoint().connect_with_connector_lazy(connector(path.into())))
}

/// A gRPC channel to a Unix socket.
///
/// # Errors
/// When nobody listens there, or the socket is not ours to use.
pub async fn channel(path: impl Into<PathBuf>) -> Result<Channel, Error> {
    endpoint().connect_with_connector(connector(path.into())).await
}

/// Bytes a stream may be ahead of its reader. Little: a reader that falls behind is to hold up the sender, before the HTTP/2 library
/// counts small frames that nobody reads, and ends the connection. It allows more of them the larger the connection's window is.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// gRPC wants an address; the connector knows the real one.
fn endpoint() -> Endpoint {
    let endpoint = Endpoint::from_static("http://socket.invalid");
    endpoint.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW)
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

fn connector(
    path: PathBuf,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future = Connecting> + Send {
    service_fn(move |_| -> Connecting {
        let path = path.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    })
}
