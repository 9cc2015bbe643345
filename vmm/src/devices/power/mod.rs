//! ACPI power management registers: how a guest switches itself off, and how it is asked to. (Resetting has its own
//! port.)
//!
//! ```text
//!   Machine::press_power_button ──> status bit ──┬─ and ──> line 9 of the IOAPIC, level-triggered
//!   guest's ACPI driver ──────────> enable bit ──┘
//!   guest's handler ── writes the status bit ──> cleared, line down
//! ```

mod device;
mod persist;

pub(crate) use device::{Power, SLEEP_TYPE_S5};
pub(crate) use persist::PowerState;
