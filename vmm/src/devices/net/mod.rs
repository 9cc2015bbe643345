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

pub(crate) use device::{CTRL, Nic, RX, TX};
pub use metrics::NetMetrics;
pub(crate) use persist::NicState;
pub use port::{NetPort, NicPort, TapPort, Transmit};
pub use tap::{Tap, TapError};
