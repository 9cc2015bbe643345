//! What taps are asked of the kernel: `ioctl`s of `/dev/net/tun`.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

use super::header::{HEADER_BYTES, Offloads};

ioctl_iow_nr!(TUNSETIFF, 'T' as u32, 202, libc::c_int);
ioctl_iow_nr!(TUNSETOFFLOAD, 'T' as u32, 208, libc::c_uint);
ioctl_ior_nr!(TUNGETIFF, 'T' as u32, 210, libc::c_uint);
ioctl_iow_nr!(TUNSETVNETHDRSZ, 'T' as u32, 216, libc::c_int);
ioctl_iow_nr!(TUNSETQUEUE, 'T' as u32, 217, libc::c_int);

/// What every tap here is opened with.
pub(super) const WANTED_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI;

/// Arguments of TUNSETOFFLOAD (`TUN_F_*` of `linux/if_tun.h`).
const CHECKSUM: libc::c_ulong = 0x01;
const TSO4: libc::c_ulong = 0x02;
const TSO6: libc::c_ulong = 0x04;
const TSO_ECN: libc::c_ulong = 0x08;

/// `struct ifreq` as far as taps use it.
#[repr(C)]
pub(super) struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn with_flags(flags: libc::c_int) -> InterfaceRequest {
        // The bits of a short, of which the topmost is a flag too.
        let flags = u16::try_from(flags).unwrap_or(0).cast_signed();
        InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] }
    }

    /// To attach to the interface `text` with `flags`; `None` if nothing can have that name.
    pub(super) fn named(text: &str, flags: libc::c_int) -> Option<InterfaceRequest> {
        let legal = |b: u8| b.is_ascii_graphic() && b != b'/';
        if text.is_empty() || text.len() >= libc::IFNAMSIZ || !text.bytes().all(legal) {
            return None;
        }
        let mut request = InterfaceRequest::with_flags(flags);
        request.name[..text.len()].copy_from_slice(text.as_bytes());
        Some(request)
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches an open `/dev/net/tun` to the interface of the request.
pub(super) fn attach(tun: &impl AsRawFd, request: &InterfaceRequest) -> io::Result<()> {
    // SAFETY: the request is a live structure with the layout of `struct ifreq`, of which the kernel reads and writes no
    // more than its size.
    checked(unsafe { ioctl_with_ref(tun, TUNSETIFF(), request) })
}

/// The flags a tap was opened with.
pub(super) fn flags(tap: &impl AsRawFd) -> io::Result<libc::c_int> {
    let mut request = InterfaceRequest::with_flags(0);
    // SAFETY: the request is a live structure with the layout of `struct ifreq`, of which the kernel writes no more than its
    // size.
    checked(unsafe { ioctl_with_mut_ref(tap, TUNGETIFF(), &mut request) })?;
    Ok(libc::c_int::from(request.flags.cast_unsigned()))
}

/// Gives the header before each frame the size it has here.
pub(super) fn set_header_size(tap: &impl AsRawFd) -> io::Result<()> {
    let bytes = libc::c_int::try_from(HEADER_BYTES).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one int, which lives through the call.
    checked(unsafe { ioctl_with_ref(tap, TUNSETVNETHDRSZ(), &bytes) })
}

/// Has the kernel leave to the reader of the tap what `offloads` allows, and do the rest itself.
pub(super) fn set_offloads(tap: &impl AsRawFd, offloads: Offloads) -> io::Result<()> {
    let bits = [
        (offloads.checksum, CHECKSUM),
        (offloads.tso4, TSO4),
        (offloads.tso6, TSO6),
        (offloads.ecn, TSO_ECN),
    ];
    let argument = bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit);
    // SAFETY: the argument is a number, no address.
    checked(unsafe { ioctl_with_val(tap, TUNSETOFFLOAD(), argument) })
}

/// Has the kernel use one queue of a tap, or pass it by; what waits in a queue passed by is dropped.
pub(super) fn use_queue(queue: &impl AsRawFd, used: bool) -> io::Result<()> {
    let request =
        InterfaceRequest::with_flags(if used { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE });
    // SAFETY: as in `attach`.
    checked(unsafe { ioctl_with_ref(queue, TUNSETQUEUE(), &request) })
}
