//! Whether this host can run VMs.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use lab_agent::protocol::{Answer, Refusal};

// From linux/kvm.h.
const KVM_GET_API_VERSION: libc::Ioctl = 0xAE00;
const KVM_CREATE_VM: libc::Ioctl = 0xAE01;
const KVM_CHECK_EXTENSION: libc::Ioctl = 0xAE03;
const KVM_CAP_DIRTY_LOG_RING: libc::c_long = 192;

/// Creates a VM and drops it.
pub(crate) fn probe() -> Result<Answer, Refusal> {
    let refuse = |error: io::Error| Refusal::new("/dev/kvm", error);
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(refuse)?;
    let kvm = OwnedFd::from(kvm);
    let api_version = ioctl(&kvm, KVM_GET_API_VERSION, 0).map_err(refuse)?;
    let dirty_ring_bytes = ioctl(&kvm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING).map_err(refuse)?;
    let vm = ioctl(&kvm, KVM_CREATE_VM, 0).map_err(refuse)?;
    // SAFETY: KVM_CREATE_VM has just returned this descriptor to us; nothing else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(vm) });
    Ok(Answer::Kvm { api_version, dirty_ring_bytes })
}

fn ioctl(kvm: &OwnedFd, request: libc::Ioctl, argument: libc::c_long) -> io::Result<i32> {
    // SAFETY: the three requests used here take their argument by value; the kernel touches no memory of ours.
    let result = unsafe { libc::ioctl(kvm.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
