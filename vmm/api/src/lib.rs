//! The runtime API of one `endophyte` process, and a client for it.
//!
//! What the calls do is said in `proto/endophyte.proto`.

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
pub mod socket;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
mod generated {
    tonic::include_proto!("endophyte.v1");
}

#[cfg(feature = "client")]
pub use client::{VmClient, channel, connect, connect_later};
pub use generated::*;
