//! Taps that somebody else opened and this process inherited, written `fd:N` in the spec: from a privileged helper, or out of
//! another network namespace.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::tap::{TapError, Wire};
use super::tun::{self, WANTED_FLAGS};

const PREFIX: &str = "fd:";

/// The descriptor's number as written after `fd:`; `None` for the name of an interface.
pub(crate) fn number(tap: &str) -> Option<&str> {
    tap.strip_prefix(PREFIX)
}

/// Checks that the descriptor is open and keeps frames apart. Returns it doubled, non-blocking and closed on exec, so that a
/// machine can be built from the same spec again, and what is read from it.
///
/// # Errors
/// [`TapError::Inherited`].
pub(super) fn take(number: &str) -> Result<(OwnedFd, Wire), TapError> {
    let refuse = |reason: String, remedy| TapError::Inherited { fd: number.to_owned(), reason, remedy };
    let Ok(fd @ 3..) = number.parse::<RawFd>() else {
        return Err(refuse("is not the number of a descriptor from 3 on".into(), "write fd: and the number"));
    };
    let doubled = double(fd).map_err(|e| {
        refuse(
            format!("cannot be used: {e}"),
            "open the tap before endophyte is started, without close-on-exec",
        )
    })?;
    let wire = kind(&doubled).map_err(|(reason, remedy)| refuse(reason, remedy))?;
    Ok((doubled, wire))
}

/// Checks, before anything is built, what [`take`] will find.
///
/// # Errors
/// [`TapError::Inherited`].
pub(crate) fn check(number: &str) -> Result<(), TapError> {
    take(number).map(drop)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Both descriptors share the non-blocking mode, and children get neither.
fn double(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on a number takes no memory of ours; a number that is not open gives EBADF. The result is a new
    // descriptor that nobody else knows, so it may be owned.
    unsafe {
        let doubled = OwnedFd::from_raw_fd(checked(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?);
        checked(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
        let flags = checked(libc::fcntl(fd, libc::F_GETFL))?;
        checked(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))?;
        Ok(doubled)
    }
}

type Complaint = (String, &'static str);

fn kind(fd: &OwnedFd) -> Result<Wire, Complaint> {
    let no_frames =
        |what| (format!("is {what}, which does not keep frames apart"), "pass a tap or a datagram socket");
    match socket_type(fd) {
        Some(libc::SOCK_STREAM) => return Err(no_frames("a stream socket")),
        Some(_) => return Ok(Wire::Socket),
        None => {}
    }
    let flags = tun::flags(fd).map_err(|_| no_frames("no tap with an interface and no socket"))?;
    if flags & WANTED_FLAGS != WANTED_FLAGS {
        let reason = format!("is a tap opened with flags {flags:#x}");
        return Err((reason, "open it with IFF_TAP and IFF_NO_PI"));
    }
    Ok(if flags & libc::IFF_VNET_HDR == 0 { Wire::BareTap } else { Wire::Tap })
}

fn socket_type(fd: &OwnedFd) -> Option<libc::c_int> {
    use std::os::fd::AsRawFd;
    let mut kind: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&kind)).ok()?;
    // SAFETY: both pointers are to live locals, and the length is that of the first.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(kind)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;
    use crate::devices::net::{HEADER_BYTES, Tap};
    use crate::spec::NetSpec;

    fn said(number: &str) -> String {
        take(number).unwrap_err().to_string()
    }

    #[test]
    fn frames_pass_through_an_inherited_socket_again_and_again() {
        let (far, near) = UnixDatagram::pair().unwrap();
        let name = format!("fd:{}", near.as_raw_fd());
        for _ in 0..2 {
            let card = NetSpec::plain(&name, "02:00:00:00:00:01".parse().unwrap());
            let tap = Tap::open(&card).unwrap();
            let mut room = [0; 32];
            assert_eq!(tap.read(0, &mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            far.send(b"frame").unwrap();
            assert_eq!(tap.read(0, &mut room).unwrap(), HEADER_BYTES + 5);
            assert_eq!((tap.name(), tap.offers_offloads()), (name.as_str(), false));
        }
    }

    #[test]
    fn what_is_no_tap_is_named_with_a_remedy() {
        for number in ["", "x", "-1", "0", "2", "99999999999"] {
            assert!(said(number).contains("net.tap"), "{number}");
        }
        assert!(said("1000000").contains("open the tap before"));
        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(said(&stream.as_raw_fd().to_string()).contains("stream socket"));
        let file = tempfile::tempfile().unwrap().into_raw_fd();
        assert!(said(&file.to_string()).contains("keep frames apart"));
    }
}
