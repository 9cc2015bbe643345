//! Reaching a VM's process.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

/// A client of one VM's process; clones share the connection.
pub type VmClient = crate::vm_client::VmClient<Channel>;

/// Connects to the socket that a process was given with `--api`.
///
/// # Errors
/// When nobody listens there, or the socket is not ours to use.
pub async fn connect(path: impl Into<PathBuf>) -> Result<VmClient, Error> {
    Ok(VmClient::new(channel(path).await?))
}

/// A gRPC channel to a Unix socket.
///
/// # Errors
/// When nobody listens there, or the socket is not ours to use.
pub async fn channel(path: impl Into<PathBuf>) -> Result<Channel, Error> {
    let path = path.into();
    // gRPC wants an address; the connector below knows the real one.
    let endpoint = Endpoint::from_static("http://socket.invalid");
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}
