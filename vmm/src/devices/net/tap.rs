//! The tap device of the host that frames come from and go to.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::header::{HEADER_BYTES, Offloads, frame_of, is_plain};
use super::tun::{InterfaceRequest, WANTED_FLAGS};
use super::{inherited, tun};
use crate::spec::NetSpec;

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
    /// It was made for one queue, and several are wanted.
    #[error(
        "tap {name} has one queue and the VM wants {queues}; make it anew: ip tuntap del dev {name} mode tap && \
         ip tuntap add dev {name} mode tap multi_queue && ip link set {name} up"
    )]
    OneQueue {
        /// The name.
        name: String,
        /// Pairs of queues wanted.
        queues: u16,
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

/// An open tap, non-blocking: each read or write is one packet, see [`super::header`].
#[derive(Debug)]
pub struct Tap {
    /// One per pair of the card's queues.
    queues: Vec<File>,
    name: String,
    wire: Wire,
    /// Offered to the guest's driver.
    offers: bool,
    offloads: Mutex<Offloads>,
    in_use: AtomicU16,
    lost: AtomicU64,
    /// For as long as this is open, no other VM gets the tap.
    _claim: Option<UnixDatagram>,
}

/// How frames lie in what is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// A tap of the kernel's, whose packets have headers.
    Tap,
    /// One whose packets have none.
    BareTap,
    /// A socket with bare frames.
    Socket,
    /// A socket whose packets have headers; taken at their word, so only where nobody else holds the other end.
    #[cfg(any(test, feature = "fuzzing"))]
    Pretended,
}

impl Wire {
    fn has_headers(self) -> bool {
        !matches!(self, Wire::BareTap | Wire::Socket)
    }

    fn is_tap(self) -> bool {
        matches!(self, Wire::Tap | Wire::BareTap)
    }
}

impl Tap {
    /// Opens the existing tap of a card in this network namespace, or the inherited descriptor N of the name `fd:N`. The
    /// kernel leaves nothing to be done by its reader until a guest's driver has agreed to do it.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(card: &NetSpec) -> Result<Tap, TapError> {
        let name = &card.tap;
        let (queues, wire, claim) = match inherited::number(name) {
            Some(number) => {
                let (fd, wire) = inherited::take(number)?;
                (vec![File::from(fd)], wire, None)
            }
            None if !exists(name) => {
                // Opening would create a tap that is down and gone with this process: never what was meant.
                InterfaceRequest::named(name, 0).ok_or_else(|| TapError::Name { name: name.clone() })?;
                return Err(TapError::Missing { name: name.clone() });
            }
            None => {
                let claim = claim(name)?;
                (open_queues(card)?, if card.offload { Wire::Tap } else { Wire::BareTap }, Some(claim))
            }
        };
        let tap = Tap { _claim: claim, ..Tap::new(queues, name, wire, card.offload) };
        tap.prepare().map_err(|source| TapError::Open { name: name.clone(), source })?;
        Ok(tap)
    }

    /// Uses a descriptor that somebody else opened: any non-blocking socket that keeps frames apart.
    pub fn from_fd(fd: OwnedFd, name: &str) -> Tap {
        Tap::new(vec![File::from(fd)], name, Wire::Socket, false)
    }

    /// Sockets in place of a tap's queues, with all it offers.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn pretended(queues: Vec<OwnedFd>, name: &str) -> Tap {
        let tap = Tap::new(queues.into_iter().map(File::from).collect(), name, Wire::Pretended, true);
        tap.in_use.store(1, Ordering::Relaxed);
        tap
    }

    fn new(queues: Vec<File>, name: &str, wire: Wire, offload: bool) -> Tap {
        let in_use = AtomicU16::new(u16::try_from(queues.len()).unwrap_or(1));
        Tap {
            queues,
            name: name.to_owned(),
            wire,
            offers: offload && wire.has_headers(),
            offloads: Mutex::default(),
            in_use,
            lost: AtomicU64::new(0),
            _claim: None,
        }
    }

    /// A tap remembers what it was told by whoever had it before.
    fn prepare(&self) -> io::Result<()> {
        if self.wire.is_tap() {
            tun::set_offloads(&self.queues[0], Offloads::default())?;
        }
        if self.wire == Wire::Tap {
            self.queues.iter().try_for_each(tun::set_header_size)?;
        }
        self.use_pairs(1)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a card on it can offer its guest to leave checksums and segmentation to the other side.
    pub fn offers_offloads(&self) -> bool {
        self.offers
    }

    /// Pairs of queues it has.
    pub(crate) fn pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(1)
    }

    /// Receives one packet of a queue; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, pair: u16, into: &mut [u8]) -> io::Result<usize> {
        let mut file = &self.queues[usize::from(pair)];
        if self.wire.has_headers() {
            return file.read(into);
        }
        let (header, frame) = into.split_at_mut(HEADER_BYTES.min(into.len()));
        header.fill(0);
        match file.read(frame)? {
            0 => Ok(0),
            bytes => Ok(header.len() + bytes),
        }
    }

    /// Sends one packet by the queue of a pair, or by the first if that is not in use.
    ///
    /// # Errors
    /// The kernel's; the frame is then lost, and counted.
    pub fn write(&self, pair: u16, packet: &[u8]) -> io::Result<()> {
        let pair = if pair < self.in_use.load(Ordering::Relaxed) { pair } else { 0 };
        self.put(&self.queues[usize::from(pair)], packet).inspect_err(|_| {
            self.lost.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn put(&self, mut queue: &File, packet: &[u8]) -> io::Result<()> {
        if self.wire.has_headers() {
            return queue.write(packet).map(drop);
        }
        if !is_plain(packet) {
            // Would reach somebody as a frame with a wrong checksum.
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        queue.write(frame_of(packet)).map(drop)
    }

    /// Packets that could not be sent: down, full, or refused by the kernel.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Has the kernel leave to be done what `offloads` says; nothing, if this tap offers nothing.
    pub(crate) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let mut now = self.offloads.lock().unwrap_or_else(PoisonError::into_inner);
        if *now == offloads || !self.offers {
            return Ok(());
        }
        if self.wire.is_tap() {
            tun::set_offloads(&self.queues[0], offloads)?;
        }
        *now = offloads;
        Ok(())
    }

    /// What was set last.
    #[cfg(test)]
    pub(crate) fn offloads(&self) -> Offloads {
        *self.offloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the kernel spreads frames over.
    #[cfg(test)]
    pub(crate) fn pairs_in_use(&self) -> u16 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Has the kernel spread frames over the first `pairs` queues only.
    pub(crate) fn use_pairs(&self, pairs: u16) -> io::Result<()> {
        let mut now = self.in_use.load(Ordering::Relaxed);
        while now != pairs {
            let more = now < pairs;
            let (pair, after) = if more { (now, now + 1) } else { (now - 1, now - 1) };
            if self.wire.is_tap() {
                tun::use_queue(&self.queues[usize::from(pair)], more)?;
            }
            now = after;
            self.in_use.store(now, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Descriptors that become readable when there are frames, one per pair.
    pub(crate) fn sources(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.queues.iter().map(AsRawFd::as_raw_fd)
    }
}

/// Makes sure that no two VMs of this network namespace have one tap: of one with several queues the kernel would give some to
/// each. The name of a socket nobody talks to is let go of when its process ends, however it does.
fn claim(name: &str) -> Result<UnixDatagram, TapError> {
    let address = SocketAddr::from_abstract_name(format!("endophyte tap {name}"));
    address.and_then(|address| UnixDatagram::bind_addr(&address)).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => TapError::Busy { name: name.to_owned() },
        _ => TapError::Open { name: name.to_owned(), source },
    })
}

/// Opens the queues of a card's tap.
fn open_queues(card: &NetSpec) -> Result<Vec<File>, TapError> {
    let several = card.queues > 1;
    match attach(card, several) {
        // Which of the two it was made for shows only here; one queue of several is as good as one.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !several => attach(card, true),
        attached => attached,
    }
    .map_err(|source| {
        let name = card.tap.clone();
        match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy { name },
            Some(libc::EINVAL) if several => TapError::OneQueue { name, queues: card.queues },
            _ => TapError::Open { name, source },
        }
    })
}

fn attach(card: &NetSpec, several: bool) -> io::Result<Vec<File>> {
    let headers = if card.offload { libc::IFF_VNET_HDR } else { 0 };
    let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let request = InterfaceRequest::named(&card.tap, WANTED_FLAGS | headers | queues)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let attach = |_| {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
        tun::attach(&file, &request).map(|()| file)
    };
    (0..card.queues).map(attach).collect()
}

fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: `name` is a NUL-terminated string that lives through the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

#[cfg(test)]
mod tests {
    use super::super::header::packet_of;
    use super::*;

    #[test]
    fn bad_names_and_missing_taps_are_told_apart() {
        let open = |name: &str| Tap::open(&NetSpec::plain(name, "02:00:00:00:00:01".parse().unwrap()));
        for name in ["", "a-name-far-too-long", "with/slash", "with blank"] {
            assert!(matches!(open(name), Err(TapError::Name { .. })), "{name:?}");
        }
        assert!(matches!(open("no-such-tap"), Err(TapError::Missing { .. })));
    }

    #[test]
    fn a_socket_carries_bare_frames_and_none_that_need_work() {
        let (far, near) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let tap = Tap::from_fd(OwnedFd::from(near), "wire");
        assert!(!tap.offers_offloads());
        tap.write(0, &packet_of(b"frame")).unwrap();
        let mut room = [9; 32];
        assert_eq!(far.recv(&mut room).unwrap(), 5);
        far.send(b"answer").unwrap();
        assert_eq!(tap.read(0, &mut room).unwrap(), HEADER_BYTES + 6);
        assert_eq!(room[..HEADER_BYTES + 6], *packet_of(b"answer"));
        let mut work = packet_of(b"frame");
        work[0] = 1;
        tap.write(0, &work).unwrap_err();
        tap.write(0, b"short").unwrap_err();
        assert_eq!(tap.lost(), 2);
    }
}
