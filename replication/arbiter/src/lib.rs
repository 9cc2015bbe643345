//! The arbiter on one machine: a process that keeps one record per VM on disk and changes it only by the rules of
//! [`mycelium_ram_core::record`].
//!
//! Nodes ask over QUIC with their Ed25519 keys; a key that is not allowed does not get past the handshake. A question is
//! one JSON object on a stream of its own, the answer another. An answer that does not come means nothing: the asker
//! asks again under the same operation id.

pub mod client;
pub mod limits;
pub mod server;
pub mod store;
pub mod wire;

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"mycelium-arbiter/1";
