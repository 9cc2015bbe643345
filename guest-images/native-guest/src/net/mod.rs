//! The network, from the PCI device up to RESP.
//!
//! ```text
//! pci ─> msix ─> device (queues of frames) ─> phy (smoltcp's view of it) ─> server (sockets and sessions)
//! ```

mod announce;
mod caps;
mod device;
mod hal;
mod msix;
mod pci;
mod phy;
mod server;

pub(crate) use device::NetDevice;
pub(crate) use server::Server;
