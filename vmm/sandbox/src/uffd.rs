//! A userfaultfd that also sees faults of the kernel: KVM's own accesses to memory that has not been restored yet.
//!
//! Unprivileged ones see user faults only, so it is opened before privileges go. Nobody gets one who did not ask: it makes
//! other kernel bugs easier to use.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::ioctl::ioctl_with_val;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(USERFAULTFD_IOC_NEW, 0xAA, 0x00);

/// From the device if it can be opened, else by the system call.
pub(crate) fn open() -> Option<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let by_call = || {
        // SAFETY: the call takes flags only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        RawFd::try_from(fd).unwrap_or(-1)
    };
    let fd = match File::options().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: this request takes flags by value and touches no memory of ours.
        Ok(device) => unsafe {
            ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), libc::c_ulong::try_from(flags).unwrap_or(0))
        },
        Err(_) => by_call(),
    };
    if fd < 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "no userfaultfd for faults of the kernel");
        return None;
    }
    // SAFETY: a new descriptor that nobody else knows of.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
