//! Moving requests between queues and engine. Runs on the disk's thread, a bounded number of requests per turn.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vm_memory::{Bytes, GuestAddress};

use super::device::{Block, Pending};
use super::engine::Finished;
use super::request::{Asked, HEADER_BYTES, Operation, RANGE_BYTES, Refused};
use crate::limits::DISK_TURN_REQUESTS;
use crate::virtio::{ChainError, Found, Io, Turn};

/// Where the parts of a request are in its chain.
struct Layout {
    /// Guest memory for data, in the direction of the operation: (address, bytes).
    data: Vec<(u64, u32)>,
    status_at: u64,
}

impl Block {
    /// Takes requests from queue `index` for one turn.
    pub(super) fn work(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut turn = Turn::More;
        for _ in 0..DISK_TURN_REQUESTS {
            if !self.may_start(index) || !io.next(index)? {
                turn = Turn::Idle;
                break;
            }
            self.begin(index, io)?;
        }
        self.engine.submit();
        self.reap(io)?;
        Ok(turn)
    }

    /// Answers what is over and takes what has come, from all queues.
    pub(super) fn glance(&mut self, io: &mut Io<'_>) -> Result<Found, ChainError> {
        let over = self.engine.is_over();
        if over {
            self.reap(io)?;
            // Of what waits, some can start now.
            self.work_waiting(io)?;
        }
        let mut taken = 0;
        for index in 0..self.queues {
            if self.waiting[usize::from(index)] {
                continue;
            }
            while taken < DISK_TURN_REQUESTS && self.may_start(index) && io.next_quietly(index)? {
                self.begin(index, io)?;
                taken += 1;
            }
        }
        if taken > 0 {
            self.engine.submit();
        }
        Ok(if over || taken > 0 { Found::Work } else { Found::Nothing })
    }

    /// Takes requests from the queues that had to wait.
    pub(super) fn work_waiting(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut turn = Turn::Idle;
        for index in (0..).take(self.waiting.len()) {
            if std::mem::take(&mut self.waiting[usize::from(index)]) && self.work(index, io)? == Turn::More {
                self.waiting[usize::from(index)] = true;
                turn = Turn::More;
            }
        }
        Ok(turn)
    }

    /// Whether another request of queue `index` may start; otherwise it will be looked at again.
    fn may_start(&mut self, index: u16) -> bool {
        let held = self.limiter.holds();
        if !held && !self.free.is_empty() && !self.follower_is_full() {
            return true;
        }
        self.metrics.throttled += u64::from(held);
        self.waiting[usize::from(index)] = true;
        false
    }

    /// Starts, or answers at once, the request popped last.
    fn begin(&mut self, queue: u16, io: &mut Io<'_>) -> Result<(), ChainError> {
        let (operation, layout) = self.understand(io)?;
        let operation = match operation {
            Ok(operation) => operation,
            Err(refused) => {
                self.metrics.failed += 1;
                return self.answer_now(io, queue, &layout, status_of(refused), 0);
            }
        };
        if operation == Operation::GetId {
            let written = io.write(&self.serial_field()[..room(&layout)])?;
            return self.answer_now(io, queue, &layout, VIRTIO_BLK_S_OK, written);
        }
        self.limiter.count(operation.bytes());
        self.memory.clear();
        for (address, bytes) in &layout.data {
            self.memory.push(io.ram.host_range(*address, *bytes).ok_or(ChainError::OutsideRam)?);
        }
        let slot = self.free.pop().expect("`may_start` has seen one");
        let into = if let Operation::Read { .. } = operation { layout.data } else { Vec::new() };
        let head = io.chain.head();
        self.under_way[usize::from(slot)] =
            Some(Pending { queue, head, operation, status_at: layout.status_at, into });
        if operation == Operation::Flush
            && let Err(error) = self.retire_journal()
        {
            // The flush itself meets the same trouble and tells the guest; the journal stays.
            tracing::error!(disk = %self.serial, %error, "the journal of the time as a replica cannot be ended");
        }
        self.launch(slot, operation, io)
    }

    /// Reads the request popped last. A chain that is no request at all breaks the device.
    fn understand(&self, io: &Io<'_>) -> Result<(Result<Operation, Refused>, Layout), ChainError> {
        let (sent, room) = (io.chain.readable_bytes(), io.chain.writable_bytes());
        let mut start = [0; HEADER_BYTES + RANGE_BYTES];
        let read = io.read(&mut start)?;
        let (header, payload) = start[..read].split_first_chunk().ok_or(ChainError::Direction)?;
        let in_bytes = room.checked_sub(1).ok_or(ChainError::Direction)?;
        let status_at = io.chain.last_writable_byte().ok_or(ChainError::Direction)?;
        let out_bytes = sent - HEADER_BYTES as u64;
        let asked = Asked { header, payload, out_bytes, in_bytes };
        let operation = Operation::parse(asked, &self.geometry);
        let data = match operation {
            Ok(Operation::Write { .. }) => io.chain.readable_after(HEADER_BYTES as u64),
            Ok(Operation::Read { .. } | Operation::GetId) => io.chain.writable_before(in_bytes),
            _ => Vec::new(),
        };
        Ok((operation, Layout { data, status_at }))
    }

    /// Answers every request that is over.
    pub(super) fn reap(&mut self, io: &mut Io<'_>) -> Result<(), ChainError> {
        while let Some(finished) = self.engine.finished() {
            self.answer(finished, Some(io))?;
        }
        self.signal(io)
    }

    /// Interrupts the driver, once per queue with answers.
    pub(super) fn signal(&mut self, io: &mut Io<'_>) -> Result<(), ChainError> {
        for (index, answered) in (0..).zip(&mut self.answered) {
            if std::mem::take(answered) {
                io.signal(index)?;
            }
        }
        Ok(())
    }

    /// Frees the slot and, if there still is somebody who asked, answers.
    pub(super) fn answer(&mut self, finished: Finished, io: Option<&mut Io<'_>>) -> Result<(), ChainError> {
        let pending = self.under_way[usize::from(finished.slot)].take();
        self.free.push(finished.slot);
        let Some(pending) = pending else { return Ok(()) };
        self.count(&pending.operation, &finished.result);
        let Some(io) = io else { return Ok(()) };
        for (address, bytes) in &pending.into {
            io.ram.mark_written(*address, *bytes);
        }
        let status = if finished.result.is_ok() { VIRTIO_BLK_S_OK } else { VIRTIO_BLK_S_IOERR };
        let read: u64 = pending.into.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
        put_status(io, pending.status_at, status)?;
        let written = u32::try_from(read + 1).unwrap_or(u32::MAX);
        self.answered[usize::from(pending.queue)] = true;
        io.complete_head(pending.queue, pending.head, written)
    }

    /// Answers the request popped last without starting it.
    fn answer_now(
        &mut self,
        io: &mut Io<'_>,
        queue: u16,
        layout: &Layout,
        status: u32,
        written: usize,
    ) -> Result<(), ChainError> {
        put_status(io, layout.status_at, status)?;
        self.answered[usize::from(queue)] = true;
        io.complete(queue, u32::try_from(written + 1).unwrap_or(1))
    }

    fn count(&mut self, operation: &Operation, result: &std::io::Result<()>) {
        let metrics = &mut self.metrics;
        if let Err(error) = result {
            metrics.failed += 1;
            // A full disk refuses every write: said ever more rarely.
            if metrics.failed.is_power_of_two() {
                let failed = metrics.failed;
                tracing::warn!(disk = %self.serial, ?operation, %error, failed, "the host refused a disk request; the guest is told");
            }
            return;
        }
        match operation {
            Operation::Read { bytes, .. } => {
                metrics.reads += 1;
                metrics.read_bytes += bytes;
            }
            Operation::Write { bytes, .. } => {
                metrics.writes += 1;
                metrics.written_bytes += bytes;
            }
            Operation::Flush => metrics.flushes += 1,
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => metrics.discards += 1,
            Operation::GetId => {}
        }
    }
}

fn status_of(refused: Refused) -> u32 {
    match refused {
        Refused::Unsupported => VIRTIO_BLK_S_UNSUPP,
        Refused::Wrong => VIRTIO_BLK_S_IOERR,
    }
}

/// Room for a serial number.
fn room(layout: &Layout) -> usize {
    let bytes: u64 = layout.data.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
    usize::try_from(bytes).unwrap_or(usize::MAX).min(crate::limits::DISK_SERIAL_BYTES_MAX)
}

fn put_status(io: &Io<'_>, at: u64, status: u32) -> Result<(), ChainError> {
    let status = u8::try_from(status).unwrap_or(u8::MAX);
    io.memory().write_obj(status, GuestAddress(at)).map_err(|_| ChainError::OutsideRam)
}
