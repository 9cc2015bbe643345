//! Sockets between guest and host: virtio-vsock on one side, Unix sockets on the other.
//!
//! ```text
//!   guest TX queue ──> talk ──> VsockPort::offer ── (the output gate) ──> Deed::carry_out ──> host ──> Unix sockets
//!   guest RX queue <── talk <── host <── Unix sockets
//! ```
//! A program of the host connects to the spec's socket, sends the line `CONNECT PORT`, and reads `OK NUMBER` once the
//! guest has accepted; from there on the stream is the guest's. The guest reaches port N of the host at the Unix socket
//! of the same path with `_N` appended.
//!
//! What the guest does to a connection is output and passes the port; bytes for the guest are input and do not. Output is
//! not given to replicas: connections are no part of the state. After a restore the driver is told so
//! (`VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`), and programs of the host have lost theirs with the old process.

mod connection;
mod credit;
mod device;
mod host;
mod metrics;
mod packet;
mod persist;
mod port;
mod queue;
mod talk;

#[cfg(test)]
pub(crate) use device::{EVENT, RX};
pub(crate) use device::{TX, Vsock, VsockDevice};
pub use metrics::VsockMetrics;
pub use port::{Deed, DirectPort, VsockLink, VsockPort};
