//! What all virtio devices have in common: a place on the PCI bus, registers, interrupts, and queues in memory.
//!
//! ```text
//! pci (the bus) ─> function (one device: caps, msix) ─> a driver with queues
//! ```

mod caps;
mod function;
mod hal;
mod msix;
mod outbox;
mod pci;

pub(crate) use caps::Doorbell;
pub(crate) use function::{DeviceError, Function, Queue};
pub(crate) use hal::IdentityMap;
pub(crate) use outbox::{Inbox, Outbox};
pub(crate) use pci::Bus;
