//! What runs as the first process of a lab host, and the protocol by which tests drive it.
//!
//! A lab host is an emulated machine with its own kernel. It has no shell: its init is the binary `lab-agent`, which carries
//! out a [`plan::BootPlan`] laid beside it in the initramfs and then obeys [`protocol::Order`]s that arrive over a
//! virtio-serial port. This library holds what both ends must agree on; the binary holds what only the inside does.

pub mod frame;
pub mod limits;
pub mod plan;
pub mod protocol;
