//! What can go wrong with a machine.

use std::io;

use crate::arch::boot::BootError;
use crate::arch::cpuid::CpuidError;
use crate::devices::block::ImageError;
use crate::kvm::{KvmError, KvmUnavailable};
use crate::memory::MemoryError;
use crate::spec::SpecError;
use crate::state::StateError;
use crate::vcpu::ParkTimeout;

/// Why a machine could not be built or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No usable `/dev/kvm`.
    #[error(transparent)]
    KvmUnavailable(#[from] KvmUnavailable),
    /// A KVM call failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The processor the spec asks for.
    #[error(transparent)]
    Cpu(#[from] CpuidError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Loading the guest.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A file named by the spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A disk image that cannot be used.
    #[error(transparent)]
    Disk(#[from] ImageError),
    /// The machine cannot run without its disks.
    #[error(
        "the machine's disks are not open in this process: another one works on them, or did; take them first"
    )]
    DisksAway,
    /// A state that cannot be restored.
    #[error("cannot restore the machine: {0}")]
    State(#[from] StateError),
    /// A vCPU does not leave the guest.
    #[error("cannot pause the machine: {0}")]
    Park(#[from] ParkTimeout),
    /// Threads, timers, polling.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The spec has another number of cards than there are ports.
    #[error("the spec has {spec} network cards but {ports} ports were given; open one port per card")]
    Ports {
        /// Cards in the spec.
        spec: usize,
        /// Ports given.
        ports: usize,
    },
    /// A device of the spec has no port, or a port no device.
    #[error("spec and ports do not agree on {device}; open ports for what the spec has, no more and no less")]
    Port {
        /// The device.
        device: &'static str,
    },
    /// An operation that needs the machine to stand still.
    #[error("cannot {action} while the machine runs; pause it first")]
    Running {
        /// What was asked.
        action: &'static str,
    },
    /// The spec asks for no balloon.
    #[error("the VM has no balloon; add `balloon = true` to its spec and start it again")]
    NoBalloon,
    /// A balloon that would leave nothing.
    #[error("a balloon of {pages} pages was asked for, but the guest has {ram} pages of RAM; ask for fewer")]
    BalloonTooLarge {
        /// Pages asked for.
        pages: u64,
        /// Pages of RAM.
        ram: u64,
    },
    /// An operation that needs dirty tracking.
    #[error("dirty pages are not being tracked; call start_dirty_tracking first")]
    NotTracking,
    /// A register holds a value this host's processor does not take.
    #[error(
        "vCPU {vcpu}: register {index:#x} cannot be set to {value:#x} on this host; the nodes' processors or kernels differ too much"
    )]
    RegisterRefused {
        /// The vCPU.
        vcpu: u8,
        /// MSR index.
        index: u32,
        /// Value refused.
        value: u64,
    },
    /// The state comes from a processor with another FPU layout.
    #[error("vCPU {vcpu}: its FPU state has another size than this host's; the nodes' processors differ")]
    FpuSize {
        /// The vCPU.
        vcpu: u8,
    },
}
