//! Which model-specific registers make up a vCPU, and in what order they go back.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::errno;

use crate::kvm::{KvmError, refused};
use crate::limits::MSRS_MAX;
use crate::spec::CpuModel;

/// Time stamp counter. Saved and restored as time (see `time`), never as a plain register.
pub(crate) const TSC: u32 = 0x10;
/// Deadline of the local APIC's timer; arms a timer against the TSC, so it goes back after the TSC.
const TSC_DEADLINE: u32 = 0x6e0;

/// The indices to save: KVM's list, less those that this vCPU refuses to read, TSC-relative ones last.
///
/// # Errors
/// [`KvmError`] when KVM does not answer, or lists more than a state can carry.
pub(crate) fn readable(kvm: &Kvm, model: CpuModel, vcpu: &VcpuFd) -> Result<Vec<u32>, KvmError> {
    let listed = kvm.get_msr_index_list().map_err(refused("list MSRs"))?;
    let mut indices: Vec<u32> = listed.as_slice().iter().copied().filter(|i| *i != TSC).collect();
    if !indices.contains(&TSC_DEADLINE) {
        indices.push(TSC_DEADLINE);
    }
    indices.retain(|index| model == CpuModel::Host || of_every_host(*index));
    indices.retain(|index| read_one(vcpu, *index).is_some());
    indices.sort_by_key(|index| *index == TSC_DEADLINE);
    if indices.len() > MSRS_MAX {
        // A state without some of them would not be the guest's.
        return Err(refused("keep its list of MSRs within our bound")(errno::Error::new(libc::E2BIG)));
    }
    Ok(indices)
}

/// Registers that belong to features a level has: system calls, memory types, machine checks, clocks, speculation control.
/// Others exist on some hosts only, and a guest of a level has no way to them.
fn of_every_host(index: u32) -> bool {
    matches!(index,
        TSC_DEADLINE | 0x3b | 0x48 | 0x8b | 0x174..=0x176 | 0x179..=0x17b | 0x1a0 | 0x1d9
        | 0x200..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f | 0x277 | 0x2ff | 0x400..=0x47f
        | 0x11 | 0x12 | 0x4b56_4d00..=0x4b56_4d01 | 0x4b56_4d03..=0x4b56_4d04
        | 0xc000_0080..=0xc000_0084 | 0xc000_0100..=0xc000_0103)
}

/// One MSR's value, or `None` where KVM has no such register.
pub(crate) fn read_one(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut one = buffer(&[index]);
    match vcpu.get_msrs(&mut one) {
        Ok(1) => one.as_slice().first().map(|entry| entry.data),
        _ => None,
    }
}

/// A buffer to read or write `indices` with one call.
pub(crate) fn buffer(indices: &[u32]) -> Msrs {
    let entries: Vec<_> =
        indices.iter().map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() }).collect();
    Msrs::from_entries(&entries).expect("indices are bounded by MSRS_MAX, which is KVM's own bound")
}

/// Writes all entries. A register that refuses its value is fine if it already holds it (read-only ones do).
/// Returns the first that does not.
///
/// # Errors
/// [`KvmError`] when KVM does not answer at all.
pub(crate) fn write_all(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<Option<kvm_msr_entry>, KvmError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let batch = Msrs::from_entries(rest).expect("entries are bounded by MSRS_MAX");
        let written = vcpu.set_msrs(&batch).map_err(refused("write MSRs"))?;
        let Some(stuck) = rest.get(written) else { break };
        if read_one(vcpu, stuck.index) != Some(stuck.data) {
            return Ok(Some(*stuck));
        }
        rest = &rest[written + 1..];
    }
    Ok(None)
}
