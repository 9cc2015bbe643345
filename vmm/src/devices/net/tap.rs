//! The tap device of the host that frames come from and go to.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::inherited;

ioctl_iow_nr!(TUNSETIFF, 'T' as u32, 202, libc::c_int);

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Its name is no interface name.
    #[error("tap name {name:?} is not 1 to 15 characters without '/' and blanks; choose another name")]
    Name {
        /// The name.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no tap {name}; create it: ip tuntap add dev {name} mode tap && ip link set {name} up")]
    Missing {
        /// The name.
        name: String,
    },
    /// Another process has it.
    #[error("tap {name} is in use by another process; stop that VM or give this one a tap of its own")]
    Busy {
        /// The name.
        name: String,
    },
    /// An inherited descriptor cannot be used.
    #[error("net.tap = \"fd:{fd}\" {reason}; {remedy}")]
    Inherited {
        /// Its number as written.
        fd: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel refused.
    #[error(
        "cannot open tap {name}: {source}; run as root, and check that /dev/net/tun exists (modprobe tun)"
    )]
    Open {
        /// The name.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An open tap, non-blocking: each read or write is one frame.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Opens the existing tap `name` of this network namespace, or the inherited descriptor N of the name `fd:N`.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Tap, TapError> {
        if let Some(number) = inherited::number(name) {
            return inherited::take(number).map(|fd| Tap::from_fd(fd, name));
        }
        let fail = |source| TapError::Open { name: name.to_owned(), source };
        let request =
            InterfaceRequest::named(name).ok_or_else(|| TapError::Name { name: name.to_owned() })?;
        if !exists(name) {
            // Opening would create a tap that is down and gone with this process: never what was meant.
            return Err(TapError::Missing { name: name.to_owned() });
        }
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open("/dev/net/tun")
            .map_err(fail)?;
        // SAFETY: the request is a live structure with the layout of `struct ifreq`, of which the kernel reads
        // and writes no more than its size.
        if unsafe { ioctl_with_ref(&file, TUNSETIFF(), &request) } == 0 {
            return Ok(Tap { file, name: name.to_owned() });
        }
        let source = io::Error::last_os_error();
        match source.raw_os_error() {
            Some(libc::EBUSY) => Err(TapError::Busy { name: name.to_owned() }),
            _ => Err(fail(source)),
        }
    }

    /// Uses a descriptor that somebody else opened: a tap from a privileged helper, or any non-blocking socket
    /// that keeps frames apart.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Tap {
        Tap { file: File::from(fd), name: name.to_owned() }
    }

    /// The same tap once more: frames go to whichever reads first.
    ///
    /// # Errors
    /// When this process has too many descriptors.
    pub fn try_clone(&self) -> io::Result<Tap> {
        Ok(Tap { file: self.file.try_clone()?, name: self.name.clone() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Receives one frame; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(into)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The kernel's; the frame is then lost.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(|_| ())
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// `struct ifreq` as far as TUNSETIFF uses it.
#[repr(C)]
pub(super) struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

impl InterfaceRequest {
    /// For the kernel to fill.
    pub(super) fn empty() -> InterfaceRequest {
        InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] }
    }

    pub(super) fn flags(&self) -> libc::c_short {
        self.flags
    }

    fn named(text: &str) -> Option<InterfaceRequest> {
        let legal = |b: u8| b.is_ascii_graphic() && b != b'/';
        if text.is_empty() || text.len() >= libc::IFNAMSIZ || !text.bytes().all(legal) {
            return None;
        }
        let mut name = [0; libc::IFNAMSIZ];
        name[..text.len()].copy_from_slice(text.as_bytes());
        let flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).ok()?;
        Some(InterfaceRequest { name, flags, rest: [0; 22] })
    }
}

fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: `name` is a NUL-terminated string that lives through the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_names_and_missing_taps_are_told_apart() {
        for name in ["", "a-name-far-too-long", "with/slash", "with blank"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name { .. })), "{name:?}");
        }
        assert!(matches!(Tap::open("no-such-tap"), Err(TapError::Missing { .. })));
    }
}
