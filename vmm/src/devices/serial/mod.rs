//! COM1, a 16550: the guest's console.

mod device;
mod persist;
mod port;

pub(crate) use device::SerialDevice;
pub(crate) use persist::SerialSaved;
pub use port::{SerialPort, StreamPort};
