//! virtio over PCI, version 1: what every device type has in common.

mod chain;
mod transport;

pub(crate) use chain::{Chain, ChainError};
pub(crate) use transport::{Action, BAR_BYTES, Blueprint, Transport, TransportState};
