//! Guest clocks across a takeover: the time stamp counter and KVM's paravirtual clock.
//!
//! Both run on in the kernel whether the guest runs or not, each from its own host's counter. Moving a guest
//! therefore moves *readings*: what the guest last saw, plus the real time since, becomes what it sees next.
//! The counter is set by its offset where KVM allows it: writing the MSR instead lets KVM guess that the write
//! means "like the other vCPUs" when it lies within a second of them, and then keeps its own value.

use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clock_data, kvm_device_attr, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use super::msrs;
use crate::kvm::{KvmError, refused};
use crate::limits::VCPUS_MAX;
use crate::state::{Fields, Payload, StateError};

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Kilohertz of the guest's counter.
///
/// # Errors
/// [`KvmError`] on a host whose own counter is unstable.
pub(crate) fn tsc_khz(vcpu: &VcpuFd) -> Result<u32, KvmError> {
    vcpu.get_tsc_khz().map_err(refused("tell the frequency of the time stamp counter"))
}

/// Writes the section: the paravirtual clock, the first vCPU's counter, and how far the others' are from it.
///
/// # Errors
/// [`KvmError`].
pub(crate) fn save<'a>(
    vm: &VmFd,
    vcpus: impl IntoIterator<Item = &'a VcpuFd>,
    out: &mut Payload<'_>,
) -> Result<(), KvmError> {
    out.u64(vm.get_clock().map_err(refused("read the guest clock"))?.clock);
    let mut base = None;
    for vcpu in vcpus {
        let offset = offset(vcpu).unwrap_or(0);
        let first = match base {
            Some(first) => first,
            None => {
                out.u32(tsc_khz(vcpu)?);
                out.u64(msrs::read_one(vcpu, msrs::TSC).unwrap_or(0));
                offset
            }
        };
        base = Some(first);
        out.i64(offset.wrapping_sub(first).cast_signed());
    }
    Ok(())
}

/// Guest clocks as read from a state.
#[derive(Debug)]
pub(crate) struct TimeState {
    clock_ns: u64,
    tsc_khz: u32,
    tsc: u64,
    /// Each vCPU's counter relative to the first's.
    skews: Vec<i64>,
}

impl TimeState {
    /// Reads the section of a machine with `vcpus` vCPUs.
    ///
    /// # Errors
    /// [`StateError`] naming the field.
    pub(crate) fn decode(mut fields: Fields<'_>, vcpus: u8) -> Result<TimeState, StateError> {
        debug_assert!(vcpus <= VCPUS_MAX);
        let clock_ns = fields.u64()?;
        let tsc_khz = fields.u32()?;
        if tsc_khz == 0 {
            return Err(fields.invalid("TSC frequency", 0, "a counter that stands still is none"));
        }
        let tsc = fields.u64()?;
        let skews = (0..vcpus).map(|_| fields.i64()).collect::<Result<_, _>>()?;
        fields.finish()?;
        Ok(TimeState { clock_ns, tsc_khz, tsc, skews })
    }

    /// Sets the paravirtual clock to what it would show now, `elapsed` after the state was saved.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn apply_clock(&self, vm: &VmFd, elapsed: &Elapsed) -> Result<(), KvmError> {
        let elapsed_ns = u64::try_from(elapsed.now().as_nanos()).unwrap_or(u64::MAX);
        let clock =
            kvm_clock_data { clock: self.clock_ns.saturating_add(elapsed_ns), ..kvm_clock_data::default() };
        vm.set_clock(&clock).map_err(refused("take the guest clock"))
    }

    /// Sets every vCPU's counter to what it would show now.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn apply_tsc<'a>(
        &self,
        vcpus: impl IntoIterator<Item = &'a VcpuFd>,
        elapsed: &Elapsed,
    ) -> Result<(), KvmError> {
        let mut base = None;
        let mut target = self.tsc_after(elapsed.now());
        for (vcpu, skew) in vcpus.into_iter().zip(&self.skews) {
            let first = match (base, offset(vcpu)) {
                (Some(first), Some(_)) => first,
                (None, Some(offset)) => {
                    let shown = msrs::read_one(vcpu, msrs::TSC).unwrap_or(0);
                    target = self.tsc_after(elapsed.now());
                    offset.wrapping_add(target.wrapping_sub(shown))
                }
                (_, None) => {
                    write_counter(vcpu, target)?;
                    continue;
                }
            };
            base = Some(first);
            set_offset(vcpu, first.wrapping_add(skew.cast_unsigned()))
                .map_err(refused("take the time stamp counter's offset"))?;
        }
        Ok(())
    }

    fn tsc_after(&self, elapsed: Duration) -> u64 {
        let cycles = elapsed.as_nanos().saturating_mul(u128::from(self.tsc_khz)) / 1_000_000;
        self.tsc.wrapping_add(u64::try_from(cycles).unwrap_or(u64::MAX))
    }
}

/// Real time since a state was saved; goes on while it is being restored.
#[derive(Debug)]
pub(crate) struct Elapsed {
    before: Duration,
    since: Instant,
}

impl Elapsed {
    /// `before` has passed by now.
    pub(crate) fn new(before: Duration) -> Elapsed {
        Elapsed { before, since: Instant::now() }
    }

    fn now(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

fn write_counter(vcpu: &VcpuFd, value: u64) -> Result<(), KvmError> {
    let entry = kvm_msr_entry { index: msrs::TSC, data: value, ..kvm_msr_entry::default() };
    // A refusal is no error: what this counter shows is then the host's own, which never goes back.
    msrs::write_all(vcpu, &[entry]).map(|_| ())
}

/// The counter's offset from the host's, or `None` where KVM does not tell it (before Linux 5.16).
fn offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut value = 0u64;
    let attr = offset_attr(&raw mut value);
    // SAFETY: KVM writes one u64 to the address in `attr`, which is `value`, alive and not otherwise borrowed.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attr) };
    (result == 0).then_some(value)
}

fn set_offset(vcpu: &VcpuFd, mut value: u64) -> Result<(), errno::Error> {
    let attr = offset_attr(&raw mut value);
    // SAFETY: KVM reads one u64 from the address in `attr`, which is `value`, alive for the call.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attr) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}

fn offset_attr(value: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: value.expose_provenance() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_advances_by_real_time() {
        let saved = TimeState { clock_ns: 0, tsc_khz: 2_500_000, tsc: 1_000, skews: vec![0] };
        assert_eq!(saved.tsc_after(Duration::ZERO), 1_000);
        assert_eq!(saved.tsc_after(Duration::from_millis(2)), 1_000 + 5_000_000);
        // A week at 5 GHz does not overflow on the way.
        let fast = TimeState { tsc_khz: 5_000_000, ..saved };
        assert_eq!(fast.tsc_after(Duration::from_secs(604_800)), 1_000 + 604_800 * 5_000_000_000);
    }
}
