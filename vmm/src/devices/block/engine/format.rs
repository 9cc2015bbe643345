//! Images with structures of their own, through `imago`: one request at a time, copied.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;

use imago::FormatAccess;
use imago::file::File as ImagoFile;

use super::Finished;
use crate::devices::block::request::Operation;
use crate::memory::{GuestRam, HostRange};

/// Copies at most this much at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Carries each request out at once, in the thread that starts it.
pub(crate) struct FormatEngine {
    image: FormatAccess<ImagoFile>,
    chunk: Vec<u8>,
    finished: VecDeque<Finished>,
    ram: Arc<GuestRam>,
    lock: File,
}

impl std::fmt::Debug for FormatEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FormatEngine").finish_non_exhaustive()
    }
}

impl FormatEngine {
    pub(super) fn new(image: FormatAccess<ImagoFile>, lock: File, ram: Arc<GuestRam>) -> FormatEngine {
        FormatEngine { image, chunk: Vec::new(), finished: VecDeque::new(), ram, lock }
    }

    pub(super) fn file(&self) -> &File {
        &self.lock
    }

    /// Writes out what the format keeps in memory, and makes it last.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }

    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.image.read(into, offset)
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.image.write(data, offset)
    }

    pub(super) fn zero_at(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.image.write_zeroes(offset, bytes)
    }

    pub(super) fn start_with(&mut self, slot: u16, operation: Operation, data: &[u8]) {
        let result = match operation {
            Operation::Write { offset, .. } => self.write_at(offset, data),
            other => self.carry_out(other, &[]),
        };
        self.finished.push_back(Finished { slot, result });
    }

    pub(super) fn start(&mut self, slot: u16, operation: Operation, memory: &[HostRange]) {
        let result = self.carry_out(operation, memory);
        self.finished.push_back(Finished { slot, result });
    }

    pub(super) fn is_over(&self) -> bool {
        !self.finished.is_empty()
    }

    pub(super) fn finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    fn carry_out(&mut self, operation: Operation, memory: &[HostRange]) -> io::Result<()> {
        match operation {
            Operation::Read { offset, .. } => self.read(offset, memory),
            Operation::Write { offset, .. } => self.write(offset, memory),
            Operation::Flush => self.flush(),
            Operation::Discard { offset, bytes } => self.image.discard_to_any(offset, bytes),
            Operation::WriteZeroes { offset, bytes, .. } => self.image.write_zeroes(offset, bytes),
            Operation::GetId => Ok(()),
        }
    }

    fn read(&mut self, mut offset: u64, memory: &[HostRange]) -> io::Result<()> {
        for part in memory.iter().flat_map(|range| range.chunks(CHUNK_BYTES)) {
            self.chunk.resize(part.bytes, 0);
            self.image.read(&mut self.chunk[..], offset)?;
            self.ram.copy_in(&self.chunk, part);
            offset += part.bytes as u64;
        }
        Ok(())
    }

    fn write(&mut self, mut offset: u64, memory: &[HostRange]) -> io::Result<()> {
        for part in memory.iter().flat_map(|range| range.chunks(CHUNK_BYTES)) {
            self.chunk.resize(part.bytes, 0);
            self.ram.copy_out(part, &mut self.chunk);
            self.image.write(&self.chunk[..], offset)?;
            offset += part.bytes as u64;
        }
        Ok(())
    }
}
