//! Reaching a node's daemon.

use std::path::PathBuf;

use tonic::transport::{Channel, Error};

/// A client of one daemon; clones share the connection.
pub type NodeClient = crate::node_client::NodeClient<Channel>;

/// Connects to a daemon's socket.
///
/// # Errors
/// When nobody listens there, or the socket is not ours to use.
pub async fn connect(path: impl Into<PathBuf>) -> Result<NodeClient, Error> {
    Ok(NodeClient::new(endophyte_api::channel(path).await?))
}
