//! What the native guest decides without touching hardware: its command line, its memory map, the arithmetic
//! of its clock, and what it writes to disks. Kept apart from the kernel binary so that ordinary unit tests can run it.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod latency;
pub mod limits;
pub mod memmap;
pub mod options;
pub mod pattern;
pub mod pvclock;
pub mod work;
