//! Bytes that can be read at any offset: a file, or memory in tests and under the fuzzer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where a snapshot is read from.
pub trait ReadAt {
    /// Length in bytes.
    ///
    /// # Errors
    /// The kernel's.
    fn length(&self) -> io::Result<u64>;

    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// The kernel's, or [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, into, offset)
    }
}

impl ReadAt for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let end = || -> io::Error { io::ErrorKind::UnexpectedEof.into() };
        let start = usize::try_from(offset).map_err(|_| end())?;
        let from = self.get(start..).and_then(|rest| rest.get(..into.len())).ok_or_else(end)?;
        into.copy_from_slice(from);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        self.as_slice().length()
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(into, offset)
    }
}
