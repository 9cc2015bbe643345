//! vCPU threads and the gate that parks them.
//!
//! ```text
//!              release                 kick (flag, immediate_exit, signal)
//!   parked ───────────────> running ──────────────────────────────────────> parked
//!     ^                        │ guest powered off, triple fault, ...            ^
//!     └── not released again <─┴── every vCPU is kicked, the machine is halted ──┘
//! ```

mod gate;
mod thread;

pub(crate) use gate::{Gate, ParkTimeout};
pub(crate) use thread::{Bus, Exit, Vcpu};
