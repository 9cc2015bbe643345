//! Keyboard controller (8042, ports 0x60 and 0x64) without keyboard or mouse: it resets the machine.
//!
//! Kernels pulse its reset line (`reboot=k`, and Linux by itself when ACPI fails) after they waited for it to be ready
//! to take a command; so its status has to read as ready. Those that look for keyboards although ACPI says there is no
//! controller get an answer to every question, because waiting for one that never comes costs half a second each.

mod device;
mod persist;

pub(crate) use device::Keyboard;
pub(crate) use persist::KeyboardState;
