//! What is read from: a disk, and a part of one.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A disk to read from.
pub trait Disk: Send + Sync {
    /// Its size, bytes.
    fn bytes(&self) -> u64;

    /// Fills `into` from `offset`, bytes.
    ///
    /// # Errors
    /// Whatever the medium answers; a range past the end is `UnexpectedEof`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

/// A raw image, or a block device.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    bytes: u64,
}

impl RawDisk {
    /// Takes an open file; only reads from it.
    ///
    /// # Errors
    /// When its size cannot be found by seeking, as with a pipe.
    pub fn new(mut file: File) -> io::Result<Self> {
        // A block device has no length in its metadata.
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, bytes })
    }
}

impl Disk for RawDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}

/// A range of a disk. Always lies within it.
#[derive(Clone)]
pub(crate) struct Slice {
    disk: Arc<dyn Disk>,
    start: u64,
    bytes: u64,
}

impl Slice {
    pub(crate) fn whole(disk: Arc<dyn Disk>) -> Self {
        let bytes = disk.bytes();
        Self { disk, start: 0, bytes }
    }

    /// The part from `start`, cut at the end of this one; nothing if it begins there or later.
    pub(crate) fn part(&self, start: u64, bytes: u64) -> Option<Self> {
        let room = self.bytes.checked_sub(start).filter(|room| *room > 0)?;
        Some(Self { disk: Arc::clone(&self.disk), start: self.start + start, bytes: bytes.min(room) })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = u64::try_from(into.len()).ok().and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_at(self.start + offset, into)
    }

    /// `N` bytes, or nothing when they are not there.
    pub(crate) fn array<const N: usize>(&self, offset: u64) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.read_at(offset, &mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice")
            .field("start", &self.start)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod memory {
    use super::Disk;
    use std::io;

    /// A disk in memory.
    pub(crate) struct Memory(pub(crate) Vec<u8>);

    impl Disk for Memory {
        fn bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)?.get(..into.len()));
            into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }
}
