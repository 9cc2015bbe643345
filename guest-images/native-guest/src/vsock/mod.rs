//! The socket device: streams to and from programs of the host.
//!
//! ```text
//! packet (headers) ─> device (queues) ─> stream (one connection: credit) ─> service (echo, RESP, connecting)
//! ```

mod device;
mod packet;
mod service;
mod stream;

pub(crate) use service::VsockService;
