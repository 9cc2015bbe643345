//! The processor the guest sees: what KVM supports, less what cannot move to another host.

mod features;
mod level;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

pub(crate) use features::name_of;
use level::CpuLacking;

use crate::kvm::{KvmError, refused};
use crate::spec::CpuModel;

/// Why a VM cannot have the processor it asks for.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM does not answer.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host lacks features.
    #[error(transparent)]
    Lacking(#[from] CpuLacking),
}

const LEAF_FEATURES: u32 = 0x1;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1 ECX: nested virtualisation on Intel (its state is not in our state format).
const ECX_VMX: u32 = 1 << 5;
/// Leaf 1 ECX: the in-kernel local APIC offers deadline timers on every host, but KVM lists them only on some.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: several logical processors per package.
const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: nested virtualisation on AMD.
const ECX_SVM: u32 = 1 << 2;
/// KVM's asynchronous page faults: a "page is ready" in flight is not in any state KVM lets us save.
const KVM_ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// CPUID common to all vCPUs of a VM with `vcpus` of them.
///
/// # Errors
/// [`CpuidError`].
pub(crate) fn for_machine(kvm: &Kvm, model: CpuModel, vcpus: u8) -> Result<CpuId, CpuidError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("list CPUID"))?;
    let mut cpuid = level::of(model, &supported)?;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx = entry.ecx & !ECX_VMX | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
                entry.ebx = entry.ebx & 0x0000_ffff | u32::from(vcpus) << 16;
                entry.edx = if vcpus > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
            }
            LEAF_KVM_FEATURES => entry.eax &= !KVM_ASYNC_PF,
            LEAF_AMD_FEATURES => entry.ecx &= !ECX_SVM,
            LEAF_AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | u32::from(vcpus - 1),
            _ => {}
        }
    }
    Ok(cpuid)
}

/// The same with the parts that name the vCPU itself.
pub(crate) fn for_vcpu(machine: &CpuId, vcpu: u8, vcpus: u8) -> CpuId {
    let mut cpuid = machine.clone();
    let id = u32::from(vcpu);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => topology(entry, id, vcpus),
            LEAF_AMD_TOPOLOGY => {
                entry.eax = id;
                entry.ebx = id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    cpuid
}

/// One socket of single-threaded cores: level 0 is the thread, level 1 the package of all cores.
fn topology(entry: &mut kvm_bindings::kvm_cpuid_entry2, id: u32, vcpus: u8) {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let core_bits = u32::from(vcpus).next_power_of_two().trailing_zeros();
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, THREAD << 8),
        1 => (core_bits, u32::from(vcpus), CORE << 8 | 1),
        level => (0, 0, level),
    };
    entry.edx = id;
}
