//! What differs between processor architectures: the address map, boot protocol, tables for the guest and vCPU
//! state. The rest of the crate uses the names exported here and never names an architecture.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("this architecture has no VMM yet; add src/arch/<name> beside x86_64");
