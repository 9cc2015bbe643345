//! Paravirtual console: virtio-console on one side, a Unix socket per port on the other.
//!
//! ```text
//!   guest's transmit queue ──> device ──> ConsolePort::write ── (the output gate) ──> Terminal::show ──> client
//!   guest's receive queue  <── device <────────────────────────────────────────────── Terminal       <── client
//! ```
//! Port 0 is a console (hvc0 to Linux) and always open. The others are ports of a name, open to the guest while a client
//! is connected. Each terminal has one client at a time. What the guest says without one waits for the next, the newest
//! part of it; what a client says waits in its socket until the guest has opened the port and has buffers.

mod control;
mod device;
mod metrics;
mod persist;
mod port;
mod queue;
mod terminal;

pub(crate) use device::{Console, ConsoleDevice};
pub use metrics::ConsoleMetrics;
pub use port::{ConsoleLink, ConsolePort};
pub use terminal::Terminal;
