//! Real-time clock with its battery-backed memory (ports 0x70 and 0x71): where a guest reads the date at boot.

mod device;
mod persist;

pub(crate) use device::Cmos;
pub(crate) use persist::CmosState;
