//! The devices of a machine. Each has the same files: `mod` (what it is), `device` (registers), and where it has
//! them `queue` (virtio rings), `port` (the way out of the VM), `persist` (state) and `metrics`.
//!
//! All state of a device changes under one lock of its own. Pausing takes each lock once and leaves the device
//! holding still; what arrives meanwhile (a notification, a frame) is owed and made up for at the resume.

pub mod balloon;
pub mod block;
pub(crate) mod cmos;
pub mod console;
pub mod hotplug;
pub(crate) mod keyboard;
pub mod listener;
pub mod net;
pub(crate) mod power;
pub(crate) mod rate;
pub(crate) mod registers;
pub mod rng;
pub mod serial;
pub mod vsock;
pub(crate) mod watchdog;
