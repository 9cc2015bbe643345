//! Watchdog (port 0x510): a guest that writes N is reported unless it writes again within N * 100 ms; 0 disarms.
//!
//! It counts the guest's time: while the machine is paused it stands still, and it moves with the guest.

mod device;
mod persist;

pub(crate) use device::Watchdog;
pub(crate) use persist::WatchdogState;
