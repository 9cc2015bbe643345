//! What the native guest decides without touching hardware: its command line, its memory map and the arithmetic
//! of its clock. Kept apart from the kernel binary so that ordinary unit tests can run it.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod memmap;
pub mod options;
pub mod pvclock;
