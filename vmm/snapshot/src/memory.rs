//! Guest memory as a snapshot sees it: numbered pages.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{pread, pwrite};

use crate::limits::PAGE_BYTES;

/// Pages of RAM next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Number of the first one.
    pub first_page: u64,
    /// How many.
    pub pages: u64,
}

impl Slot {
    pub(crate) fn end(&self) -> u64 {
        self.first_page.saturating_add(self.pages)
    }
}

/// Memory to save. It must hold still from the first call to the last: the machine is parked.
pub trait Memory {
    /// The parts of RAM, in ascending order. RAM ends with the last one; what lies between two is not saved.
    fn slots(&self) -> Vec<Slot>;

    /// Copies whole pages out, from `first_page` on.
    ///
    /// # Errors
    /// When the pages cannot be read; the snapshot is given up then.
    fn read(&self, first_page: u64, into: &mut [u8]) -> io::Result<()>;

    /// The file behind the memory, if page `i` is at `i * PAGE_BYTES` in it. Its holes are skipped as zeros, so there must
    /// be no other place that still holds pages: memory that is being restored lazily has to be complete first.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Memory to restore into. The machine is parked.
pub trait MemoryMut {
    /// Puts whole pages in, from `first_page` on.
    ///
    /// # Errors
    /// When there are no such pages; restoring is given up then.
    fn write(&self, first_page: u64, from: &[u8]) -> io::Result<()>;

    /// Makes pages zero. May do nothing where they are known to be.
    ///
    /// # Errors
    /// As [`MemoryMut::write`].
    fn zero(&self, first_page: u64, pages: u64) -> io::Result<()>;
}

/// Memory that is a file from its first page on, such as the memfd behind a VM's RAM. What is read and written here is what
/// the file's shared mappings hold, and holes stay holes when they are read.
#[derive(Clone, Copy, Debug)]
pub struct FileMemory<'a> {
    file: BorrowedFd<'a>,
    pages: u64,
}

impl<'a> FileMemory<'a> {
    /// The first `pages` pages of `file`.
    pub fn new(file: BorrowedFd<'a>, pages: u64) -> FileMemory<'a> {
        FileMemory { file, pages }
    }

    fn offset(&self, first_page: u64, bytes: usize) -> io::Result<u64> {
        let pages = bytes.div_ceil(PAGE_BYTES) as u64;
        match first_page.checked_add(pages) {
            Some(end) if end <= self.pages => Ok(first_page * PAGE_BYTES as u64),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the page lies outside memory")),
        }
    }
}

impl Memory for FileMemory<'_> {
    fn slots(&self) -> Vec<Slot> {
        vec![Slot { first_page: 0, pages: self.pages }]
    }

    fn read(&self, first_page: u64, into: &mut [u8]) -> io::Result<()> {
        let mut offset = self.offset(first_page, into.len())?;
        let mut rest = into;
        while !rest.is_empty() {
            let bytes = pread(self.file, &mut *rest, offset)?;
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rest = &mut rest[bytes..];
            offset += bytes as u64;
        }
        Ok(())
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file)
    }
}

impl MemoryMut for FileMemory<'_> {
    fn write(&self, first_page: u64, from: &[u8]) -> io::Result<()> {
        let mut offset = self.offset(first_page, from.len())?;
        let mut rest = from;
        while !rest.is_empty() {
            let bytes = pwrite(self.file, rest, offset)?;
            rest = &rest[bytes..];
            offset += bytes as u64;
        }
        Ok(())
    }

    fn zero(&self, first_page: u64, pages: u64) -> io::Result<()> {
        let bytes = usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES);
        let offset = self.offset(first_page, bytes)?;
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self.file, mode, offset, bytes as u64)?)
    }
}
