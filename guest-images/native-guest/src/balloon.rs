//! The balloon: pages of the heap that the host may have for the time being.

use crate::virtio::{Bus, DeviceError, Function, Outbox};
use alloc::alloc::{Layout, alloc, dealloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::NonNull;
use virtio_drivers::PAGE_SIZE;
use virtio_drivers::transport::{DeviceType, Transport};

const QUEUE_INFLATE: u16 = 0;
const QUEUE_DEFLATE: u16 = 1;

// Offsets in virtio_balloon_config (virtio 1.2, 5.5.4).
const CONFIG_TARGET: usize = 0;
const CONFIG_ACTUAL: usize = 4;

/// Most pages given up at a time, which is the most that fits the page numbers of one request. The allocator loses up
/// to a page per piece, so pieces are not small.
const PIECE_PAGES: u32 = 256;

/// How often the target is read while the guest is busy, and at most after it was woken, in nanoseconds: reading it
/// leaves the guest.
const LOOK_NS: u64 = 10_000_000;
const LOOK_WOKEN_NS: u64 = 1_000_000;

/// Consecutive pages that the host has, is about to get, or is about to give back.
struct Piece {
    memory: NonNull<u8>,
    pages: u32,
}

impl Piece {
    fn layout(pages: u32) -> Option<Layout> {
        Layout::from_size_align(usize::try_from(pages).ok()? * PAGE_SIZE, PAGE_SIZE).ok()
    }

    fn new(pages: u32) -> Option<Self> {
        let layout = Self::layout(pages).filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout is not of size zero.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        Some(Self { memory, pages })
    }

    /// The request that names the pages.
    fn numbers(&self) -> Box<[u8]> {
        let first = self.memory.as_ptr().expose_provenance() / PAGE_SIZE;
        let numbers = (first..).take(usize::try_from(self.pages).unwrap_or(0));
        numbers.flat_map(|number| u32::try_from(number).unwrap_or(0).to_le_bytes()).collect()
    }

    /// Gives the memory back to the heap.
    fn free(self) {
        if let Some(layout) = Self::layout(self.pages) {
            // SAFETY: allocated in `new` with the same layout; `self` is gone after this.
            unsafe { dealloc(self.memory.as_ptr(), layout) }
        }
    }
}

/// What the host is doing.
enum Step {
    Nothing,
    Inflating(Piece),
    Deflating(Piece),
}

/// The balloon.
pub(crate) struct Balloon {
    function: Function,
    inflate: Outbox<4>,
    deflate: Outbox<4>,
    held: Vec<Piece>,
    actual: u32,
    target: u32,
    step: Step,
    looked_ns: u64,
    woken: bool,
}

impl Balloon {
    /// Opens the device with an empty balloon.
    pub(crate) fn new(bus: &mut Bus) -> Result<Self, DeviceError> {
        let mut function = Function::open(bus, DeviceType::MemoryBalloon, 1)?;
        function.negotiate(0, 0)?;
        let (inflate, deflate) =
            (Outbox::new(&mut function, QUEUE_INFLATE)?, Outbox::new(&mut function, QUEUE_DEFLATE)?);
        function.finish_init();
        let (held, step) = (Vec::new(), Step::Nothing);
        Ok(Self { function, inflate, deflate, held, actual: 0, target: 0, step, looked_ns: 0, woken: true })
    }

    /// Pages the host wants, and pages it has.
    pub(crate) fn pages(&self) -> (u64, u64) {
        (self.target.into(), self.actual.into())
    }

    /// Goes on towards the target. Whether anything happened, and when to look at the target again at the latest.
    pub(crate) fn turn(&mut self, now_ns: u64) -> (bool, Option<u64>) {
        let wait = if self.woken { LOOK_WOKEN_NS } else { LOOK_NS };
        if now_ns >= self.looked_ns + wait {
            self.target = self.function.read_config_space(CONFIG_TARGET).unwrap_or(0);
            (self.looked_ns, self.woken) = (now_ns, false);
        }
        let moved = self.finish() | self.begin();
        (moved, self.woken.then_some(self.looked_ns + LOOK_WOKEN_NS))
    }

    /// Takes note of a step that is done.
    fn finish(&mut self) -> bool {
        self.inflate.reclaim();
        self.deflate.reclaim();
        if !self.inflate.is_empty() || !self.deflate.is_empty() {
            return false;
        }
        match core::mem::replace(&mut self.step, Step::Nothing) {
            Step::Nothing => return false,
            Step::Inflating(piece) => {
                self.actual += piece.pages;
                self.held.push(piece);
            }
            Step::Deflating(piece) => {
                self.actual -= piece.pages;
                piece.free();
            }
        }
        // Refused only for a device without this register, which is none.
        let _ = self.function.write_config_space(CONFIG_ACTUAL, self.actual);
        true
    }

    fn begin(&mut self) -> bool {
        if !matches!(self.step, Step::Nothing) {
            return false;
        }
        if self.actual < self.target {
            let pages = (self.target - self.actual).min(PIECE_PAGES);
            // A heap without that much keeps what it has: the host asked for too much.
            let Some(piece) = Piece::new(pages) else { return false };
            self.inflate.send(piece.numbers());
            self.step = Step::Inflating(piece);
            return true;
        }
        if self.actual > self.target
            && let Some(piece) = self.held.pop()
        {
            // A piece too many goes back whole; what is then missing is given up anew.
            self.deflate.send(piece.numbers());
            self.step = Step::Deflating(piece);
            return true;
        }
        false
    }

    /// Switches interrupts on for a sleep. Whether sleeping is right.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.inflate.prepare_sleep() & self.deflate.prepare_sleep()
    }

    /// Switches interrupts off again. The target may have changed.
    pub(crate) fn end_sleep(&mut self) {
        self.inflate.end_sleep();
        self.deflate.end_sleep();
        self.woken = true;
    }
}
