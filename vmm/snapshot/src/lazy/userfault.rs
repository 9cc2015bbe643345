//! The kernel's side: mappings whose missing pages are reported to us, and the calls that fill them.
//!
//! All `unsafe` of this crate is here. It cannot be had otherwise: the memory belongs to a guest that uses it at the same
//! time, so it may never be a Rust slice; the kernel writes it for us, by address.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Updater, opcode};
use rustix::mm::{Advice, MprotectFlags, UserfaultfdFlags, madvise, mprotect};
use userfaultfd::{Error, Event, Uffd};

use crate::limits::{PAGE_BYTES, RAM_PAGES_MAX};
use crate::reader::bytes_of;

const DEVICE: &str = "/dev/userfaultfd";
/// `UFFD_FEATURE_MISSING_SHMEM`: missing pages of a memfd are reported, not only those of anonymous memory.
const MISSING_SHMEM: u64 = 1 << 5;
const API: u64 = 0xaa;

/// Why the kernel does not report page faults to this process.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// Neither way to a userfaultfd is open.
    #[error(
        "cannot open a userfaultfd that serves KVM's accesses: {DEVICE}: {device}; system call: {syscall}; let this \
         process read and write {DEVICE}, or hand it over open, or restore eagerly"
    )]
    Open {
        /// What the device says.
        device: io::Error,
        /// What the system call says.
        syscall: io::Error,
    },
    /// What was handed over is not the device.
    #[error("the file handed over makes no userfaultfd: {source}; open {DEVICE} for reading and writing")]
    Device {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel is too old, or the descriptor was used before.
    #[error(
        "the userfaultfd cannot serve shared memory: {source}; restore eagerly, or use Linux 4.11 or later"
    )]
    Api {
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A userfaultfd, ready to have memory registered. It belongs to the process that *made* it, whoever holds it: a privileged
/// parent cannot make it for a child, but can open the device and hand that over.
#[derive(Debug)]
pub struct Userfault(Uffd);

impl Userfault {
    /// Makes one through `/dev/userfaultfd`, or else by the system call, which needs `CAP_SYS_PTRACE` or the sysctl
    /// `vm.unprivileged_userfaultfd`.
    ///
    /// # Errors
    /// [`UserfaultError`].
    pub fn open() -> Result<Userfault, UserfaultError> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        let device = match device.and_then(|file| new_from_device(file.as_fd())) {
            Ok(fd) => return Userfault::from_made(fd),
            Err(error) => error,
        };
        // SAFETY: the call takes flags only. What can be done with its result is this module's business.
        match unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) } {
            Ok(fd) => Userfault::from_made(fd),
            Err(error) => Err(UserfaultError::Open { device, syscall: error.into() }),
        }
    }

    /// Makes one through an open `/dev/userfaultfd`: what a sandboxed process is given.
    ///
    /// # Errors
    /// [`UserfaultError::Device`] or [`UserfaultError::Api`].
    pub fn from_device(device: BorrowedFd<'_>) -> Result<Userfault, UserfaultError> {
        Userfault::from_made(new_from_device(device).map_err(|source| UserfaultError::Device { source })?)
    }

    /// Takes one that this process made before, with `O_NONBLOCK` and without `UFFD_USER_MODE_ONLY`, and did not use yet.
    ///
    /// # Errors
    /// [`UserfaultError::Api`].
    pub fn from_made(fd: OwnedFd) -> Result<Userfault, UserfaultError> {
        let mut api = [API, MISSING_SHMEM, 0];
        // SAFETY: UFFDIO_API reads and writes `struct uffdio_api`, three 64-bit words, which `api` is.
        let handshake = unsafe {
            ioctl::ioctl(&fd, Updater::<{ opcode::read_write::<[u64; 3]>(0xaa, 0x3f) }, _>::new(&mut api))
        };
        handshake.map_err(|error| UserfaultError::Api { source: error.into() })?;
        // SAFETY: the descriptor is owned by `fd`, which gives it up here.
        Ok(Userfault(unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Throws away what `region` holds, so that every page of it is missing.
    pub(super) fn discard(&self, region: &Region) -> io::Result<()> {
        self.discard_part(region, region.first_page, region.pages)
    }

    /// As [`Userfault::discard`], of some of its pages.
    pub(super) fn discard_part(&self, region: &Region, first_page: u64, pages: u64) -> io::Result<()> {
        let (start, bytes) = region.span(first_page, pages);
        // SAFETY: the span is mapped shared and writable memory (`Region::new`), all of it guest RAM: no Rust reference
        // points into it, so that its bytes change breaks nobody's assumption.
        Ok(unsafe { madvise(start, bytes, Advice::LinuxRemove) }?)
    }

    /// From here on a missing page of these makes whoever touches it wait for us.
    pub(super) fn register(&self, region: &Region, first_page: u64, pages: u64) -> io::Result<()> {
        let (start, bytes) = region.span(first_page, pages);
        self.0.register(start, bytes).map(|_| ()).map_err(plain)
    }

    /// Ends [`Userfault::register`] for the whole region and wakes who waits: missing pages are zero from now on.
    pub(super) fn unregister(&self, region: &Region) -> io::Result<()> {
        let (start, bytes) = region.span(region.first_page, region.pages);
        self.0.unregister(start, bytes).map_err(plain)
    }

    /// Takes away all access to the region: a later touch is a fault (`EFAULT` in the kernel, `SIGSEGV` elsewhere).
    pub(super) fn close(&self, region: &Region) -> io::Result<()> {
        let (start, bytes) = region.span(region.first_page, region.pages);
        // SAFETY: the span is mapped (`Region::new`) and no Rust reference points into it; a protection that takes rights
        // away cannot make other memory reachable.
        Ok(unsafe { mprotect(start, bytes, MprotectFlags::empty()) }?)
    }

    /// Puts `contents` into the pages from `first_page` on, leaves those that are there as they are, and wakes who waits.
    pub(super) fn place(&self, region: &Region, first_page: u64, contents: &[u8]) -> io::Result<()> {
        let pages = (contents.len() / PAGE_BYTES) as u64;
        self.fill(region, first_page, pages, |to, done, bytes| {
            let from = contents[done..done + bytes].as_ptr();
            // SAFETY: `from` is `bytes` bytes of a slice, `to` as many bytes of a mapped region (`fill`). The kernel
            // installs pages only where there are none, atomically, in registered memory, and fails elsewhere.
            unsafe { self.0.copy(from.cast::<c_void>(), to, bytes, true) }
        })
    }

    /// As [`Userfault::place`], with zeros.
    pub(super) fn place_zeros(&self, region: &Region, first_page: u64, pages: u64) -> io::Result<()> {
        self.fill(region, first_page, pages, |to, _, bytes| {
            // SAFETY: as in `place`; there is no source.
            unsafe { self.0.zeropage(to, bytes, true) }
        })
    }

    /// Calls `install(address, bytes done, bytes to do)` until all is done.
    fn fill(
        &self,
        region: &Region,
        first_page: u64,
        pages: u64,
        install: impl Fn(*mut c_void, usize, usize) -> userfaultfd::Result<usize>,
    ) -> io::Result<()> {
        let (start, bytes) = region.span(first_page, pages);
        let (mut done, mut step) = (0, bytes);
        while done < bytes {
            let to = start.wrapping_byte_add(done);
            match outcome(install(to, done, step.min(bytes - done)))? {
                Outcome::Placed(placed) => done += placed,
                Outcome::Exists => {
                    self.0.wake(to, PAGE_BYTES).map_err(plain)?;
                    done += PAGE_BYTES;
                }
                // How far it came is not known: page by page it shows.
                Outcome::Interrupted => step = PAGE_BYTES,
                Outcome::Unregistered => return Ok(()),
            }
        }
        Ok(())
    }

    /// Address of one fault that waits, if there is one. One at a time: a fault read by a thread that then waits for its
    /// source would be served by nobody, however many threads are idle.
    pub(super) fn fault(&self) -> io::Result<Option<usize>> {
        match self.0.read_event().map_err(plain)? {
            Some(Event::Pagefault { addr, .. }) => Ok(Some(addr.addr())),
            // No other event was asked for.
            Some(_) | None => Ok(None),
        }
    }
}

enum Outcome {
    Placed(usize),
    /// The first page is already there.
    Exists,
    Interrupted,
    /// Memory is complete or being taken down: nobody waits any more.
    Unregistered,
}

fn outcome(result: userfaultfd::Result<usize>) -> io::Result<Outcome> {
    let errno = match result {
        Ok(bytes) => return Ok(Outcome::Placed(bytes)),
        // A negative number of bytes, seen unsigned, says that nothing was copied.
        Err(Error::PartiallyCopied(bytes)) if isize::try_from(bytes).is_ok_and(|n| n > 0) => {
            return Ok(Outcome::Placed(bytes));
        }
        Err(Error::PartiallyCopied(_)) => return Ok(Outcome::Interrupted),
        Err(Error::CopyFailed(errno) | Error::ZeropageFailed(errno)) => errno as i32,
        Err(other) => return Err(plain(other)),
    };
    match Errno::from_raw_os_error(errno) {
        Errno::EXIST => Ok(Outcome::Exists),
        Errno::AGAIN => Ok(Outcome::Interrupted),
        Errno::NOENT => Ok(Outcome::Unregistered),
        other => Err(other.into()),
    }
}

fn plain(error: Error) -> io::Error {
    match error {
        Error::CopyFailed(errno) | Error::ZeropageFailed(errno) | Error::SystemError(errno) => {
            io::Error::from_raw_os_error(errno as i32)
        }
        other => io::Error::other(other),
    }
}

/// Part of guest RAM as it is mapped in this process.
#[derive(Clone)]
pub struct Region {
    first_page: u64,
    pages: u64,
    host: usize,
    /// Keeps the mapping.
    owner: Arc<dyn Any + Send + Sync>,
}

impl Region {
    /// `pages` pages of RAM from `first_page` on, mapped at address `host`, for as long as `owner` lives.
    ///
    /// # Panics
    /// If there are no pages or more than any VM has, or `host` is not the address of a page.
    ///
    /// # Safety
    /// The pages must be a shared, writable mapping of a memfd (or other shmem file) that stays mapped there while `owner`
    /// lives, and no reference may ever be made to its bytes: the kernel changes them at any time.
    pub unsafe fn new(first_page: u64, pages: u64, host: usize, owner: Arc<dyn Any + Send + Sync>) -> Region {
        assert!(
            pages > 0 && host != 0 && host.is_multiple_of(PAGE_BYTES),
            "no region: {pages} pages at {host:#x}"
        );
        assert!(
            first_page <= RAM_PAGES_MAX && pages <= RAM_PAGES_MAX,
            "no VM has page {first_page} + {pages}"
        );
        assert!(
            host.checked_add(bytes_of(pages)).is_some(),
            "{pages} pages at {host:#x} pass the end of memory"
        );
        Region { first_page, pages, host, owner }
    }

    pub(super) fn first_page(&self) -> u64 {
        self.first_page
    }

    pub(super) fn end(&self) -> u64 {
        self.first_page + self.pages
    }

    /// The page at an address, if it is in this region.
    pub(super) fn page_at(&self, address: usize) -> Option<u64> {
        let page = (address.checked_sub(self.host)? / PAGE_BYTES) as u64;
        (page < self.pages).then(|| self.first_page + page)
    }

    /// Address and bytes of pages of this region.
    fn span(&self, first_page: u64, pages: u64) -> (*mut c_void, usize) {
        let inside = first_page >= self.first_page && first_page + pages <= self.end() && pages > 0;
        assert!(inside, "pages {first_page} and {pages} on are not in {self:?}");
        let start = self.host + bytes_of(first_page - self.first_page);
        (std::ptr::with_exposed_provenance_mut(start), bytes_of(pages))
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pages {}..{} at {:#x} ({} owners)",
            self.first_page,
            self.end(),
            self.host,
            Arc::strong_count(&self.owner)
        )
    }
}

/// `USERFAULTFD_IOC_NEW`: flags go in as the argument itself, a descriptor comes back as the result.
struct New;

// SAFETY: the request takes an integer, so the "pointer" is never followed (`IS_MUTATING` only says that the call has
// effects); a result that is no error is a descriptor that nobody else has.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::none(0xaa, 0x00)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        std::ptr::without_provenance_mut(flags.bits() as usize)
    }

    unsafe fn output_from_ptr(result: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: see the implementation.
        Ok(unsafe { OwnedFd::from_raw_fd(result) })
    }
}

fn new_from_device(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // Any other file could understand the request as it likes: only the device is asked.
    let is_device = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(device)?.st_mode).is_char_device();
    if !is_device {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a character device"));
    }
    // SAFETY: see `New`; that it is this device is the caller's word, and another one refuses a type it does not know.
    Ok(unsafe { ioctl::ioctl(device, New) }?)
}
