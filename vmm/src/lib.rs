//! The only code of the network that opens `/dev/kvm`: one process runs one VM.
//!
//! A [`machine::Machine`] is built from a [`spec::VmSpec`] and from the ports that lead out of it
//! ([`machine::MachinePorts`]). Built, it is parked: every KVM object and thread exists, no guest instruction
//! has run. From there it either boots (active, fresh) or takes a saved state (passive, takeover):
//!
//! ```text
//!            build            boot / restore_state + pages          resume
//!   (spec) ────────> parked ───────────────────────────────> parked ───────> running
//!                                                              ^                │ pause
//!                                                              └────────────────┘
//! ```
//!
//! Saving, restoring and harvesting dirty pages are allowed only while parked; then nothing in the process
//! writes guest memory: vCPUs are outside `KVM_RUN` and devices hold still.

pub mod arch;
pub mod devices;
pub mod doctor;
mod irq;
mod kvm;
pub mod limits;
pub mod machine;
pub mod memory;
mod pci;
pub mod spec;
pub mod state;
pub mod threads;
mod vcpu;
mod virtio;

#[cfg(feature = "fuzzing")]
pub use arch::{fuzz_kernel, seeds_kernel};
#[cfg(feature = "fuzzing")]
pub use devices::hotplug::{fuzz_hotplug, seeds_hotplug};
#[cfg(feature = "fuzzing")]
pub use machine::{
    fuzz_balloon, fuzz_block, fuzz_console, fuzz_fingerprint, fuzz_net, fuzz_pci, fuzz_ports, fuzz_qcow2,
    fuzz_restore, fuzz_rng, fuzz_state, fuzz_vsock, seeds_balloon, seeds_block, seeds_console,
    seeds_fingerprint, seeds_net, seeds_pci, seeds_ports, seeds_qcow2, seeds_restore, seeds_rng, seeds_vsock,
};
#[cfg(feature = "fuzzing")]
pub use spec::{fuzz_spec, seeds_spec};
