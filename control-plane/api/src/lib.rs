//! What a node's daemon can be asked, and a client for it.
//!
//! What the calls do is said in `proto/mycelium.proto`.

#[cfg(feature = "client")]
mod client;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
mod generated {
    tonic::include_proto!("mycelium.v1");
}

#[cfg(feature = "client")]
pub use client::{NodeClient, connect};
pub use generated::*;

/// Where a daemon listens unless it is told otherwise.
pub const SOCKET: &str = "/run/mycelium/node.sock";
/// Where a daemon keeps its key and what it knows unless it is told otherwise.
pub const FOLDER: &str = "/var/lib/mycelium";
