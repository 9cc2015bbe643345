//! Real-time clock with its battery-backed memory (ports 0x70 and 0x71): where a guest reads the date at boot.
//!
//! Time is the host's, in UTC, plus what the guest has set its clock ahead. Alarm and update interrupts are there;
//! periodic ones are not (Linux makes them itself), nor does stopping the divider stop the clock.

mod clock;
mod date;
mod device;
mod persist;

pub(crate) use clock::Clock;
pub(crate) use persist::CmosState;
