//! Network card: virtio-net on one side, a tap and a port on the other.
//!
//! ```text
//!   guest TX queue ──> device ──> NetPort::transmit        (straight to the tap, or into the output gate)
//!   guest RX queue <── device <── backlog <── Machine::inject_rx   (replay at takeover)
//!                        │   <── tap
//!                        └─────> NetPort::deliver          (a copy of every frame the guest receives)
//! ```
//! Every frame at these doors has a header of 12 bytes before it, a [*packet*](header): what a guest leaves to be done by the
//! other side (checksums, cutting large segments to size) stays so through gate, replica and tap. Where neither side can do
//! such work the header is zero, and a tap without headers strips it.
//!
//! A card has one pair of queues or several, each with a queue of the tap of its own; the driver says how many it uses.

mod control;
mod device;
pub mod header;
pub(crate) mod inherited;
mod metrics;
mod persist;
mod port;
mod queue;
mod tap;
mod tun;

pub(crate) use device::Nic;
#[cfg(feature = "fuzzing")]
pub(crate) use device::{Net, queues};
#[cfg(test)]
pub(crate) use device::{rx, tx};
#[cfg(test)]
pub(crate) use header::Offloads;
pub use header::{HEADER_BYTES, frame_of, packet_of};
pub use metrics::NetMetrics;
pub use port::{NetPort, NicPort, TapPort, Transmit};
pub use tap::{Tap, TapError};
