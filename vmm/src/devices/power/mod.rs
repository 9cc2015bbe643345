//! ACPI power management registers: how a guest switches itself off. (Resetting has its own port.)

mod device;
mod persist;

pub(crate) use device::{Power, SLEEP_TYPE_S5};
pub(crate) use persist::PowerState;
