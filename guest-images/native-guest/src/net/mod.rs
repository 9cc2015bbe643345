//! The network, from the card up to RESP.
//!
//! ```text
//! virtio ─> device (queues of frames) ─> phy (smoltcp's view of it) ─> server (sockets and sessions)
//! ```

mod announce;
mod device;
mod phy;
mod server;

pub(crate) use device::NetDevice;
pub(crate) use server::Server;
