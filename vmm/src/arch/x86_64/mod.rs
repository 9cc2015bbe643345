//! x86_64: PVH boot, in-kernel APICs, port I/O, CPUID and MSRs.

pub(crate) mod acpi;
pub(crate) mod boot;
pub(crate) mod chips;
pub(crate) mod cpuid;
pub mod layout;
pub(crate) mod msrs;
pub(crate) mod time;
pub(crate) mod vcpu_state;

#[cfg(feature = "fuzzing")]
pub use boot::{fuzz_kernel, seeds_kernel};
