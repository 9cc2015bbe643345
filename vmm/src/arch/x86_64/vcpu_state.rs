//! Everything KVM knows about one vCPU but its time stamp counter.

use kvm_bindings::{
    Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use zerocopy::IntoBytes;

use super::msrs;
use crate::kvm::{KvmError, refused};
use crate::limits::{MSRS_MAX, XSAVE_BYTES_MAX};
use crate::spec::CpuModel;
use crate::state::{Fields, Payload, StateError};

/// Buffers one vCPU is read into; made once, so that saving allocates nothing.
#[derive(Debug)]
pub(crate) struct VcpuBuffers {
    msrs: Msrs,
    xsave: Xsave,
}

impl VcpuBuffers {
    /// Buffers for `vcpu` of `vm`.
    ///
    /// # Errors
    /// [`KvmError`] when KVM does not say which MSRs there are.
    pub(crate) fn new(kvm: &Kvm, vm: &VmFd, model: CpuModel, vcpu: &VcpuFd) -> Result<VcpuBuffers, KvmError> {
        let indices = msrs::readable(kvm, model, vcpu)?;
        Ok(VcpuBuffers { msrs: msrs::buffer(&indices), xsave: empty_xsave(xsave_extra_words(vm)) })
    }

    /// Writes the vCPU's section. It must be outside `KVM_RUN`, with no port or memory access half done.
    ///
    /// # Errors
    /// [`KvmError`] naming the part KVM refused.
    pub(crate) fn save(&mut self, vcpu: &VcpuFd, out: &mut Payload<'_>) -> Result<(), KvmError> {
        // First: KVM folds pending INIT and SIPI into the state when asked for it.
        out.abi(&vcpu.get_mp_state().map_err(refused("read a vCPU's run state"))?);
        out.abi(&vcpu.get_regs().map_err(refused("read registers"))?);
        out.abi(&vcpu.get_sregs().map_err(refused("read system registers"))?);
        out.abi(&vcpu.get_xcrs().map_err(refused("read XCRs"))?);
        out.abi(&vcpu.get_debug_regs().map_err(refused("read debug registers"))?);
        out.abi(&vcpu.get_lapic().map_err(refused("read the local APIC"))?);
        out.abi(&vcpu.get_vcpu_events().map_err(refused("read pending events"))?);
        // SAFETY: the buffer has the size KVM announced for this VM (see `xsave_extra_words`), and guests
        // cannot enlarge it: no dynamically enabled feature is permitted to this process.
        unsafe { vcpu.get_xsave2(&mut self.xsave) }.map_err(refused("read the FPU"))?;
        out.blob(self.xsave.as_fam_struct_ref().xsave.region.as_bytes());
        out.blob(self.xsave.as_slice().as_bytes());
        let wanted = self.msrs.as_slice().len();
        let read = vcpu.get_msrs(&mut self.msrs).map_err(refused("read MSRs"))?;
        if read != wanted {
            return Err(refused("read an MSR it could read before")(vmm_sys_util::errno::Error::new(
                libc::EIO,
            )));
        }
        out.u32(u32::try_from(wanted).unwrap_or(u32::MAX));
        for entry in self.msrs.as_slice() {
            out.u32(entry.index);
            out.u64(entry.data);
        }
        Ok(())
    }
}

/// One vCPU as read from a state, checked in shape but not yet in meaning: that KVM does.
#[derive(Debug)]
pub(crate) struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    xsave: Xsave,
    msrs: Vec<kvm_msr_entry>,
}

impl VcpuState {
    /// Reads a vCPU's section.
    ///
    /// # Errors
    /// [`StateError`] naming the field.
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<VcpuState, StateError> {
        let state = VcpuState {
            mp_state: fields.abi()?,
            regs: fields.abi()?,
            sregs: fields.abi()?,
            xcrs: fields.abi()?,
            debug_regs: fields.abi()?,
            lapic: fields.abi()?,
            events: fields.abi()?,
            xsave: decode_xsave(&mut fields)?,
            msrs: decode_msrs(&mut fields)?,
        };
        fields.finish()?;
        Ok(state)
    }

    /// Puts the state into `vcpu`. The order matters: control registers decide what later parts mean, the
    /// APIC's timer mode must be known before its deadline (last of the MSRs), and pending events come when
    /// nothing after them can clear them.
    ///
    /// # Errors
    /// [`KvmError`] naming the part KVM refused.
    pub(crate) fn apply(&self, vcpu: &VcpuFd) -> Result<Option<kvm_msr_entry>, KvmError> {
        vcpu.set_sregs(&self.sregs).map_err(refused("take system registers"))?;
        vcpu.set_regs(&self.regs).map_err(refused("take registers"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(refused("take XCRs"))?;
        // SAFETY: `decode_xsave` made the buffer no shorter than the plain XSAVE structure, and
        // `fits_xsave` was checked for this VM before anything was applied.
        unsafe { vcpu.set_xsave2(&self.xsave) }.map_err(refused("take the FPU"))?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(refused("take debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(refused("take the local APIC"))?;
        let stuck = msrs::write_all(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(refused("take pending events"))?;
        vcpu.set_mp_state(self.mp_state).map_err(refused("take a vCPU's run state"))?;
        Ok(stuck)
    }

    /// Whether the FPU image has the size `vm` works with; KVM would read past a shorter one.
    pub(crate) fn fits_xsave(&self, vm: &VmFd) -> bool {
        self.xsave.as_slice().len() == xsave_extra_words(vm)
    }
}

/// Words of XSAVE state beyond the classic 4 KiB structure.
fn xsave_extra_words(vm: &VmFd) -> usize {
    let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    bytes.saturating_sub(size_of::<kvm_xsave>()).div_ceil(4)
}

fn empty_xsave(extra_words: usize) -> Xsave {
    Xsave::new(extra_words).expect("the length is far below the wrapper's bound")
}

fn decode_xsave(fields: &mut Fields<'_>) -> Result<Xsave, StateError> {
    let region = fields.blob("XSAVE region", size_of::<kvm_xsave>())?;
    if region.len() != size_of::<kvm_xsave>() {
        return Err(fields.invalid("XSAVE region length", region.len() as u64, "it must be 4096"));
    }
    let extra = fields.blob("XSAVE extension", XSAVE_BYTES_MAX)?;
    if extra.len() % 4 != 0 {
        return Err(fields.invalid("XSAVE extension length", extra.len() as u64, "it must be whole words"));
    }
    let mut xsave = empty_xsave(extra.len() / 4);
    // SAFETY: only the plain words of `region` are written; the length that describes the extension is left.
    let head = unsafe { xsave.as_mut_fam_struct() };
    head.xsave.region.as_mut_bytes().copy_from_slice(region);
    xsave.as_mut_slice().as_mut_bytes().copy_from_slice(extra);
    Ok(xsave)
}

fn decode_msrs(fields: &mut Fields<'_>) -> Result<Vec<kvm_msr_entry>, StateError> {
    let count = fields.count("number of MSRs", MSRS_MAX)?;
    (0..count)
        .map(|_| Ok(kvm_msr_entry { index: fields.u32()?, data: fields.u64()?, ..kvm_msr_entry::default() }))
        .collect()
}
