//! Network card: virtio-net on one side, a tap and a port on the other.
//!
//! ```text
//!   guest TX queue ──> device ──> NetPort::transmit        (straight to the tap, or into the output gate)
//!   guest RX queue <── device <── backlog <── Machine::inject_rx   (replay at takeover)
//!                        │   <── tap
//!                        └─────> NetPort::deliver          (a copy of every frame the guest receives)
//! ```

mod device;
pub(crate) mod inherited;
mod metrics;
mod persist;
mod port;
mod queue;
mod tap;

#[cfg(test)]
pub(crate) use device::{CTRL, RX};
#[cfg(feature = "fuzzing")]
pub(crate) use device::{Net, QUEUES};
pub(crate) use device::{Nic, TX};
pub use metrics::NetMetrics;
pub use port::{NetPort, NicPort, TapPort, Transmit};
pub use tap::{Tap, TapError};
