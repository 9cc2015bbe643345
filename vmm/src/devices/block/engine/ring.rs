//! Raw images by io_uring: the kernel reads and writes guest memory itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::fs::FallocateFlags;
use vmm_sys_util::eventfd::EventFd;

use super::Finished;
use crate::devices::block::request::Operation;
use crate::memory::{GuestRam, HostRange};

/// The image, registered with the ring.
const IMAGE: Fixed = Fixed(0);
/// `IORING_REGISTER_ENABLE_RINGS`, which starts a ring that was made stopped.
const REGISTER_ENABLE_RINGS: u8 = 12;
/// Zeroes written at a time where a file system cannot make them.
const ZEROES_BYTES: usize = 64 << 10;

/// Requests under way in a ring.
pub(crate) struct RingEngine {
    ring: IoUring,
    flights: Vec<Flight>,
    under_way: usize,
    memory_align: usize,
    /// Through the page cache, whatever the registered file does; holds the lock.
    plain: Arc<File>,
    ram: Arc<GuestRam>,
}

/// One request, kept where the kernel may look until it is over.
#[derive(Default)]
struct Flight {
    operation: Option<Operation>,
    /// What is left of it.
    left: Vec<libc::iovec>,
    done_bytes: u64,
    /// Where its data stands in for memory that direct I/O cannot use.
    bounce: Option<Bounce>,
    /// Its data, if they are not in guest memory.
    data: Option<Bytes>,
}

// SAFETY: the raw pointers in a flight lead to guest RAM, which the engine keeps mapped, or to the flight's own
// bounce buffer or data; nothing about them belongs to a thread.
unsafe impl Send for Flight {}

/// An aligned copy of a request's data.
struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    memory: Vec<HostRange>,
}

impl std::fmt::Debug for RingEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingEngine").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

/// Leaves the ring what disks need, on the image. Filters of system calls do not see what a ring carries out, and a ring can
/// open files and connect sockets.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let operations = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::Nop::CODE,
    ];
    let mut allowed: Vec<Restriction> = operations.into_iter().map(Restriction::sqe_op).collect();
    allowed.push(Restriction::sqe_flags_allowed(squeue::Flags::FIXED_FILE.bits()));
    allowed.push(Restriction::register_op(REGISTER_ENABLE_RINGS));
    ring.submitter().register_restrictions(&mut allowed)
}

impl RingEngine {
    pub(super) fn new(
        file: &File,
        plain: File,
        memory_align: usize,
        ram: Arc<GuestRam>,
        slots: u16,
        done: &EventFd,
    ) -> io::Result<RingEngine> {
        let ring = IoUring::builder().setup_r_disabled().build(u32::from(slots).next_power_of_two())?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        ring.submitter().register_eventfd(done.as_raw_fd())?;
        restrict(&ring)?;
        ring.submitter().register_enable_rings()?;
        let flights = std::iter::repeat_with(Flight::default).take(usize::from(slots)).collect();
        Ok(RingEngine { ring, flights, under_way: 0, memory_align, plain: Arc::new(plain), ram })
    }

    pub(super) fn file(&self) -> &File {
        &self.plain
    }

    pub(super) fn shared_file(&self) -> Arc<File> {
        Arc::clone(&self.plain)
    }

    pub(super) fn memory_align(&self) -> usize {
        self.memory_align
    }

    pub(super) fn zero_at(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&*self.plain, flags, offset, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                self.without_file_system(Operation::WriteZeroes { offset, bytes, unmap: true })
            }
            done => Ok(done?),
        }
    }

    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.plain.read_exact_at(into, offset)
    }

    pub(super) fn start(&mut self, slot: u16, operation: Operation, memory: &[HostRange]) {
        let flight = self.flights[usize::from(slot)].begin(operation);
        if memory.iter().all(|range| range.is_aligned(self.memory_align)) {
            flight.left.extend(memory.iter().map(HostRange::iovec));
        } else {
            flight.detour(operation, memory, self.memory_align, &self.ram);
        }
        self.under_way += 1;
        self.push(slot);
    }

    pub(super) fn start_with(&mut self, slot: u16, operation: Operation, data: Bytes) {
        let flight = self.flights[usize::from(slot)].begin(operation);
        // The kernel reads from it: it is for a write.
        let base = data.as_ptr().cast_mut().cast();
        flight.left.push(libc::iovec { iov_base: base, iov_len: data.len() });
        flight.data = Some(data);
        self.under_way += 1;
        self.push(slot);
    }

    /// Queues what is left of the request in `slot`.
    fn push(&mut self, slot: u16) {
        let entry = self.flights[usize::from(slot)].entry().user_data(u64::from(slot));
        loop {
            // SAFETY: the entry refers to the flight's vector and the memory its parts name. Neither is touched
            // before the kernel has answered for the slot: a slot is started again only after `finished` gave it
            // back, the vector's buffer does not move meanwhile, and `ram`, the bounce buffer and the flight's own
            // data live in `self`, whose drop waits for all answers. Of its own data the kernel only reads: they
            // are a write's.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: the ring has an entry per slot, so this only makes room taken by repeated parts.
            self.submit(0);
        }
    }

    /// Hands what is queued to the kernel, and waits for `wanted` answers.
    pub(super) fn submit(&mut self, wanted: usize) {
        loop {
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => return,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                    if e.raw_os_error() == Some(libc::EBUSY) && !self.ring.completion().is_empty() {
                        return;
                    }
                }
                // The ring is ours and valid; what the kernel refuses here, it will always refuse.
                Err(error) => panic!("io_uring_enter on a valid ring: {error}"),
            }
        }
    }

    pub(super) fn is_over(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    pub(super) fn finished(&mut self) -> Option<Finished> {
        loop {
            let answer = self.ring.completion().next()?;
            let slot = u16::try_from(answer.user_data()).expect("user data is what we set");
            if let Some(result) = self.settle(slot, answer.result()) {
                self.under_way -= 1;
                self.flights[usize::from(slot)].land(&self.ram, result.is_ok());
                return Some(Finished { slot, result });
            }
        }
    }

    pub(super) fn wait(&mut self) -> Option<Finished> {
        loop {
            if let Some(finished) = self.finished() {
                return Some(finished);
            }
            if self.under_way == 0 {
                return None;
            }
            self.submit(1);
        }
    }

    /// What an answer means; `None` if the request goes on.
    fn settle(&mut self, slot: u16, answer: i32) -> Option<io::Result<()>> {
        let flight = &mut self.flights[usize::from(slot)];
        let operation = flight.operation?;
        let Ok(moved) = u64::try_from(answer) else { return self.refused(slot, operation, -answer) };
        let (Operation::Read { bytes, .. } | Operation::Write { bytes, .. }) = operation else {
            return Some(Ok(()));
        };
        if flight.done_bytes + moved >= bytes {
            return Some(Ok(()));
        }
        if moved == 0 {
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        flight.advance(moved);
        self.push(slot);
        self.submit(0);
        None
    }

    /// The kernel refused with `error`.
    fn refused(&mut self, slot: u16, operation: Operation, error: i32) -> Option<io::Result<()>> {
        match error {
            libc::EAGAIN | libc::EINTR => {
                self.push(slot);
                self.submit(0);
                None
            }
            libc::EOPNOTSUPP => Some(self.without_file_system(operation)),
            error => Some(Err(io::Error::from_raw_os_error(error))),
        }
    }

    /// Discards and zeroes where the file system knows neither.
    fn without_file_system(&self, operation: Operation) -> io::Result<()> {
        let Operation::WriteZeroes { mut offset, bytes, .. } = operation else {
            // A discard is advice.
            return Ok(());
        };
        let zeroes = [0; ZEROES_BYTES];
        let end = offset + bytes;
        while offset < end {
            let part = usize::try_from(end - offset).unwrap_or(ZEROES_BYTES).min(ZEROES_BYTES);
            self.plain.write_all_at(&zeroes[..part], offset)?;
            offset += part as u64;
        }
        // `file` may pass the page cache by.
        self.plain.sync_data()
    }
}

impl Drop for RingEngine {
    fn drop(&mut self) {
        while self.wait().is_some() {}
    }
}

impl Flight {
    /// Makes it that of a new request.
    fn begin(&mut self, operation: Operation) -> &mut Self {
        self.operation = Some(operation);
        self.done_bytes = 0;
        (self.bounce, self.data) = (None, None);
        self.left.clear();
        self
    }

    /// Gives the data a detour through aligned memory of our own.
    fn detour(&mut self, operation: Operation, memory: &[HostRange], align: usize, ram: &GuestRam) {
        let total: usize = memory.iter().map(|range| range.bytes).sum();
        let mut bytes = vec![0; total + align];
        let start = bytes.as_ptr().align_offset(align);
        if let Operation::Write { .. } = operation {
            ram.gather(memory, &mut bytes[start..start + total]);
        }
        let base = bytes[start..].as_mut_ptr().cast();
        self.left.push(libc::iovec { iov_base: base, iov_len: total });
        self.bounce = Some(Bounce { bytes, start, memory: memory.to_vec() });
    }

    /// The request is over: data that took a detour arrives.
    fn land(&mut self, ram: &GuestRam, good: bool) {
        self.data = None;
        let Some(Bounce { bytes, start, memory }) = self.bounce.take() else { return };
        if let (true, Some(Operation::Read { .. })) = (good, self.operation) {
            let mut at = start;
            for range in memory {
                ram.copy_in(&bytes[at..at + range.bytes], range);
                at += range.bytes;
            }
        }
    }

    /// Takes the first `moved` bytes off what is left.
    fn advance(&mut self, moved: u64) {
        self.done_bytes += moved;
        let mut moved = usize::try_from(moved).unwrap_or(usize::MAX);
        let whole = self.left.iter().take_while(|part| {
            let gone = part.iov_len <= moved;
            moved -= if gone { part.iov_len } else { 0 };
            gone
        });
        let whole = whole.count();
        self.left.drain(..whole);
        if let Some(first) = self.left.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
        }
    }

    fn entry(&self) -> squeue::Entry {
        const GIVE_BACK: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const MAKE_ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let parts = u32::try_from(self.left.len()).expect("bounded by the descriptors of a chain");
        match self.operation {
            Some(Operation::Read { offset, .. }) => {
                opcode::Readv::new(IMAGE, self.left.as_ptr(), parts).offset(offset + self.done_bytes).build()
            }
            Some(Operation::Write { offset, .. }) => {
                opcode::Writev::new(IMAGE, self.left.as_ptr(), parts).offset(offset + self.done_bytes).build()
            }
            Some(Operation::Flush) => opcode::Fsync::new(IMAGE).flags(FsyncFlags::DATASYNC).build(),
            Some(
                Operation::Discard { offset, bytes } | Operation::WriteZeroes { offset, bytes, unmap: true },
            ) => opcode::Fallocate::new(IMAGE, bytes).offset(offset).mode(GIVE_BACK).build(),
            Some(Operation::WriteZeroes { offset, bytes, unmap: false }) => {
                opcode::Fallocate::new(IMAGE, bytes).offset(offset).mode(MAKE_ZERO).build()
            }
            Some(Operation::GetId) | None => opcode::Nop::new().build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY: the entries of this test refer to literals and to no memory that is written.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_cannot_be_used_for_anything_but_its_image() {
        let file = tempfile::tempfile().unwrap();
        let plain = file.try_clone().unwrap();
        let ram = Arc::new(GuestRam::new(1 << 20).unwrap());
        let done = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        let mut engine = RingEngine::new(&file, plain, 1, ram, 4, &done).unwrap();
        assert_eq!(answer(&mut engine.ring, &opcode::Nop::new().build()), 0);
        assert_eq!(answer(&mut engine.ring, &opcode::Fsync::new(IMAGE).build()), 0);
        let here = io_uring::types::Fd(libc::AT_FDCWD);
        let open = opcode::OpenAt::new(here, c"/dev/null".as_ptr()).flags(libc::O_RDONLY).build();
        assert_eq!(answer(&mut engine.ring, &open), -libc::EACCES);
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build();
        assert_eq!(answer(&mut engine.ring, &socket), -libc::EACCES);
        assert!(engine.ring.submitter().register_files(&[file.as_raw_fd()]).is_err());
    }
}
