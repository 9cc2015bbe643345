//! The file behind guest RAM, of small pages or of huge ones.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use rustix::fs::FallocateFlags;

use crate::spec::HugePages;

/// Bytes of a huge page.
pub(super) const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Makes the file.
///
/// # Errors
/// What the kernel says; of huge pages, with what to do about it.
pub(super) fn memfd(bytes: u64, huge: HugePages) -> io::Result<File> {
    let flags = match huge {
        HugePages::Hugetlb => libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        HugePages::None | HugePages::Advise => libc::MFD_CLOEXEC,
    };
    // SAFETY: the name is a NUL-terminated literal; no other pointer is passed.
    let fd = unsafe { libc::memfd_create(c"endophyte-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    if huge == HugePages::Hugetlb {
        reserve(&file, bytes)?;
    }
    Ok(file)
}

/// Takes all huge pages now: one that is missing later would kill the process at some touch of the guest.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let taken = rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes));
    taken.map_err(|error| {
        let pages = bytes / HUGE_PAGE_BYTES;
        io::Error::other(format!(
            "{error}; {pages} huge pages of 2 MiB must be free: raise vm.nr_hugepages, or write huge_pages = \"advise\""
        ))
    })
}

/// Asks for huge pages where the kernel can make some; it is no error where it cannot.
pub(super) fn advise(host: *mut u8, bytes: usize) {
    // SAFETY: the range is a whole mapping of this process, which the caller owns; the advice changes no contents.
    unsafe { libc::madvise(host.cast(), bytes, libc::MADV_HUGEPAGE) };
}
