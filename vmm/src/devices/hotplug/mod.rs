//! Plugging PCI devices in and out while the guest runs: what ACPI's tables read and write, and the event that has it do so.
//!
//! ```text
//!   Machine::attach ──> "up" bit ────┐
//!   Machine::ask_to_detach ──> "down" bit ──┴─> event status bit ── and with enable ──> line 9 (SCI), level-triggered
//!   guest's ACPI driver ── _E01 reads "up" and "down", writes back what it has seen, tells its PCI driver
//!   guest's PCI driver ── has let go of a device ── _EJ0 writes "eject" ──> the machine takes the device out
//! ```
//! Bit n of a register is slot n of the bus. `docs/decisions/0015-hot-plug.md` has the reasons.

mod device;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
mod persist;

pub(crate) use device::{GPE, Hotplug, Register};
#[cfg(any(test, feature = "fuzzing"))]
pub use fuzz::{fuzz_hotplug, seeds_hotplug};
pub(crate) use persist::HotplugState;
