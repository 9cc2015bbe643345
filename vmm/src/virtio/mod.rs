//! virtio over PCI, version 1: what every device type has in common.

mod chain;
mod function;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod rig;
mod transport;

pub(crate) use chain::ChainError;
#[cfg(feature = "fuzzing")]
pub(crate) use function::fuzz_decode;
pub(crate) use function::{
    DeviceType, Found, Function, Io, Place, SavedDevice, Turn, VirtioDevice, read_image,
};
pub(crate) use transport::Blueprint;
