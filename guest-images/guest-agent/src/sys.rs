//! The system calls std does not offer, each with a safe face.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| Error::from(io::ErrorKind::InvalidInput))
}

/// A clock of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ClockId {
    Monotonic,
    Realtime,
    Boottime,
}

/// Nanoseconds on `clock`; 0 for a time before its epoch.
pub(crate) fn clock_ns(clock: ClockId) -> u64 {
    let id = match clock {
        ClockId::Monotonic => libc::CLOCK_MONOTONIC,
        ClockId::Realtime => libc::CLOCK_REALTIME,
        ClockId::Boottime => libc::CLOCK_BOOTTIME,
    };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to. The call cannot fail for these clocks; if it did, the time
    // would read as zero.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0))
}

/// Mounts a file system without a device.
pub(crate) fn mount(kind: &str, target: &str) -> io::Result<()> {
    let (kind, target) = (c_string(kind)?, c_string(target)?);
    // SAFETY: the strings live to the end of the call and end in NUL; no data is passed.
    check(unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) })
        .map(drop)
}

/// Loads a kernel module from an open file.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open during the call, the parameter string is static and ends in NUL.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Makes `file` the standard input, output and error of this process.
pub(crate) fn become_console(file: &File) -> io::Result<()> {
    for target in 0..=2 {
        // SAFETY: replaces a standard descriptor, which std uses by number only and never closes.
        check(unsafe { libc::dup2(file.as_raw_fd(), target) })?;
    }
    Ok(())
}

/// A datagram socket to send interface requests through.
pub(crate) fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends an interface or routing request.
///
/// # Safety
/// `argument` must be the type `request` is defined for, and any pointers in it must be valid or null.
pub(crate) unsafe fn ioctl<T>(socket: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the argument's type; it outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request, std::ptr::from_mut(argument)) }).map(drop)
}

/// What to wait for on a descriptor, and what came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interest {
    pub(crate) fd: RawFd,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// After [`poll`]: something is to be done on it.
    pub(crate) ready: bool,
}

/// Waits until one of `interests` is ready or `timeout` (`None` for ever) is over.
pub(crate) fn poll(interests: &mut [Interest], timeout: Option<Duration>) -> io::Result<()> {
    let event = |wanted, flag| if wanted { flag } else { 0 };
    let mut fds: Vec<libc::pollfd> = interests
        .iter()
        .map(|interest| libc::pollfd {
            fd: interest.fd,
            events: event(interest.read, libc::POLLIN) | event(interest.write, libc::POLLOUT),
            revents: 0,
        })
        .collect();
    // Rounded up: a wait of a fraction of a millisecond must not become a busy loop.
    let millis =
        timeout.map_or(-1, |time| i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(0);
    // SAFETY: `fds` is an array of `count` records that lives to the end of the call.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), count, millis) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
        _ => {}
    }
    for (interest, fd) in interests.iter_mut().zip(fds) {
        interest.ready = fd.revents != 0;
    }
    Ok(())
}

/// The machine's memory: total and free bytes.
pub(crate) fn memory() -> (u64, u64) {
    // SAFETY: all-zero is a valid `sysinfo`, which is plain numbers.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid to write to; on failure it stays zero.
    unsafe { libc::sysinfo(&raw mut info) };
    let unit = u64::from(info.mem_unit);
    (info.totalram * unit, info.freeram * unit)
}

/// How a machine ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reboot {
    PowerOff,
    Restart,
}

/// Ends the machine. Returns only if that failed.
pub(crate) fn reboot(how: Reboot) -> Error {
    let command = match how {
        Reboot::PowerOff => libc::RB_POWER_OFF,
        Reboot::Restart => libc::RB_AUTOBOOT,
    };
    // SAFETY: takes no pointers; writing file systems back is all that sync does.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    Error::last_os_error()
}
