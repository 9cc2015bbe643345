//! One request to a disk, with everything the device reads and writes of it.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// Buffers start at this alignment, so that a host can pass them on to storage as they are.
const ALIGNMENT: usize = 4096;

/// What a disk can be asked to do, by its number on the wire.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read = 0,
    Write = 1,
    Flush = 4,
    Identify = 8,
    Discard = 11,
    WriteZeroes = 13,
}

impl Operation {
    /// Whether the device fills the buffer.
    pub(super) fn fills(self) -> bool {
        matches!(self, Self::Read | Self::Identify)
    }
}

/// Answers of a device.
const STATUS_OK: u8 = 0;
/// What no device answers: it must write over this.
const STATUS_NONE: u8 = 0xff;

/// A request. Boxed while the device has it, so that its parts stay where they are.
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) sector: u64,
    /// When it was handed over, nanoseconds.
    pub(super) at_ns: u64,
    /// Whether somebody waits for this very request.
    pub(super) awaited: bool,
    pub(super) header: [u8; 16],
    pub(super) status: [u8; 1],
    memory: Vec<u8>,
    start: usize,
    len: usize,
    /// Where the data is cut into two descriptors; not at all at either end.
    cut: usize,
}

impl Request {
    /// A request with room for `capacity` bytes of data.
    pub(super) fn with_capacity(capacity: usize) -> Box<Self> {
        let memory = vec![0; capacity + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Box::new(Self {
            operation: Operation::Flush,
            sector: 0,
            at_ns: 0,
            awaited: false,
            header: [0; 16],
            status: [0],
            memory,
            start,
            len: 0,
            cut: 0,
        })
    }

    /// Makes it a request for `len` bytes of data, in one piece.
    pub(super) fn set(&mut self, operation: Operation, sector: u64, len: usize) {
        (self.operation, self.sector, self.len, self.cut) = (operation, sector, len, 0);
        self.header = [0; 16];
        self.header[..4].copy_from_slice(&(operation as u32).to_le_bytes());
        self.header[8..].copy_from_slice(&sector.to_le_bytes());
        self.status = [STATUS_NONE];
    }

    /// Splits the data into two pieces, the first of `cut` bytes.
    pub(super) fn cut_at(&mut self, cut: usize) {
        self.cut = cut.min(self.len);
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(super) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// What the device said, if it was not "done".
    pub(super) fn failure(&self) -> Option<u8> {
        (self.status[0] != STATUS_OK).then_some(self.status[0])
    }

    /// Calls `with` with the parts the device reads and those it writes, in their order on the wire.
    pub(super) fn parts<R>(
        &mut self,
        with: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R {
        let fills = self.operation.fills();
        let data = &mut self.memory[self.start..self.start + self.len];
        let (first, second) = data.split_at_mut(self.cut);
        let status = &mut self.status[..];
        match (fills, first.is_empty(), second.is_empty()) {
            (_, true, true) => with(&[&self.header], &mut [status]),
            (true, false, false) => with(&[&self.header], &mut [first, second, status]),
            (true, false, true) => with(&[&self.header], &mut [first, status]),
            (true, true, false) => with(&[&self.header], &mut [second, status]),
            (false, false, false) => with(&[&self.header, first, second], &mut [status]),
            (false, false, true) => with(&[&self.header, first], &mut [status]),
            (false, true, false) => with(&[&self.header, second], &mut [status]),
        }
    }
}
