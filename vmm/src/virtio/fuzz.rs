//! Bytes as the deeds of a driver that does as it pleases: for a device of any type, in any slot.
//!
//! Every byte string is a script. Each step begins with a byte for the action; what it needs is taken from the bytes that
//! follow, zero when they run out. [`Script`] writes well-formed ones, for a fuzzer to mutate.

use vm_memory::{Bytes, GuestAddress};

use super::rig::{BUFFERS, INDIRECT, NEXT, Rig, WRITE, avail, ring, used};
use crate::limits::QUEUE_SIZE;

/// Steps of one script; the rest is not looked at.
const STEPS_MAX: usize = 256;
/// Longest piece of memory or packet written by one step.
const PIECE_BYTES_MAX: usize = 512;
/// Buffers of chains that a script offers lie in this many bytes from [`BUFFERS`] on, one page each.
const PAGE: u64 = 0x1000;

/// Number of an action; its arguments are at [`step`].
mod action {
    pub(super) const SERVE: u8 = 0;
    pub(super) const PACKET: u8 = 1;
    pub(super) const BUFFER: u8 = 2;
    pub(super) const CHAIN: u8 = 3;
    pub(super) const RING: u8 = 4;
    pub(super) const BAR_WRITE: u8 = 5;
    pub(super) const BAR_READ: u8 = 6;
    pub(super) const CONFIG_WRITE: u8 = 7;
    pub(super) const CONFIG_READ: u8 = 8;
    pub(super) const EVENT: u8 = 9;
    pub(super) const PAUSE: u8 = 10;
    pub(super) const RESUME: u8 = 11;
    pub(super) const START: u8 = 12;
    pub(super) const MAKE_UP: u8 = 13;
    pub(super) const REQUEST: u8 = 14;
    pub(super) const COUNT: u8 = 15;
}

/// Runs the script `data` against the rig's device. The device is whatever an earlier script made of it; begin with
/// [`Rig::start`] for one that is up.
pub(crate) fn drive(rig: &mut Rig, data: &[u8]) {
    let mut script = Reader(data);
    for _ in 0..STEPS_MAX {
        if script.0.is_empty() {
            return;
        }
        step(rig, &mut script);
    }
}

fn step(rig: &mut Rig, script: &mut Reader<'_>) {
    match script.u8() % action::COUNT {
        action::SERVE => {
            let queue = script.queue(rig);
            rig.device.serve(queue);
        }
        action::PACKET => packet(rig, script, false),
        action::REQUEST => packet(rig, script, true),
        action::BUFFER => {
            let (queue, page, length) = (script.queue(rig), script.u8(), script.u16());
            rig.chain(queue, u16::from(page), &[(page_at(page), u32::from(length), true)]);
        }
        action::CHAIN => chain(rig, script),
        action::RING => scribble(rig, script),
        action::BAR_WRITE => {
            let (offset, width) = (script.u16() & 0x7fff, script.width());
            rig.write(u64::from(offset), script.take(width));
        }
        action::BAR_READ => {
            let (offset, width) = (script.u16() & 0x7fff, script.width());
            rig.device.memory_read(u64::from(offset), &mut [0; 8][..width]);
        }
        action::CONFIG_WRITE => {
            let (offset, width) = (usize::from(script.u8()), script.width().min(4));
            rig.device.config_write(offset, script.take(width));
        }
        action::CONFIG_READ => {
            let (offset, width) = (usize::from(script.u8()), script.width().min(4));
            rig.device.config_read(offset, &mut [0; 4][..width]);
        }
        action::EVENT => {
            let sources = rig.device.sources().len();
            if let Some(source) = usize::from(script.u8()).checked_rem(sources) {
                rig.device.event(u16::try_from(source).unwrap_or(0));
            }
        }
        action::PAUSE => rig.device.pause(),
        action::RESUME => rig.device.resume(),
        action::START => rig.start(),
        _ => {
            // As the machine does it: at standstill, before the guest runs.
            rig.device.pause();
            rig.device.make_up();
            rig.device.resume();
        }
    }
}

/// Writes bytes into a page and offers them as a chain for the device to read, with room for an `answer` or without.
fn packet(rig: &mut Rig, script: &mut Reader<'_>, answer: bool) {
    let (queue, page) = (script.queue(rig), script.u8());
    let room = if answer { script.u16() } else { 0 };
    let length = usize::from(script.u16()) % PIECE_BYTES_MAX;
    let bytes = script.take(length);
    rig.put(page_at(page), bytes);
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    let sent = (page_at(page), length, false);
    let answers = (page_at(page) + PAGE / 2, u32::from(room), true);
    let parts = if answer { &[sent, answers][..] } else { &[sent] };
    rig.chain(queue, u16::from(page), parts);
}

/// Offers a chain of up to four buffers anywhere, in any direction and length.
fn chain(rig: &mut Rig, script: &mut Reader<'_>) {
    let (queue, head) = (script.queue(rig), script.u16() % (QUEUE_SIZE * 2));
    let count = u16::from(script.u8() % 4);
    for index in head..=head + count {
        let (page, length, flags) = (script.u8(), script.u32(), u16::from(script.u8()));
        let address = if flags & 0x80 == 0 { page_at(page) } else { script.u64() };
        // Mostly what the position asks for; the higher bits change that.
        let usual = if index < head + count { NEXT } else { 0 } | flags & WRITE;
        let flags = if flags & 0x40 == 0 { usual } else { flags & (NEXT | WRITE | INDIRECT) };
        rig.describe(queue, index % QUEUE_SIZE, (address, length, flags, index + 1));
    }
    rig.offer(queue, head);
}

/// Writes anything anywhere into a queue's rings.
fn scribble(rig: &Rig, script: &mut Reader<'_>) {
    let queue = script.queue(rig);
    let base = [ring, avail, used][usize::from(script.u8() % 3)](queue);
    let offset = u64::from(script.u16() & 0xfff);
    let length = usize::from(script.u8());
    rig.put(base + offset, script.take(length));
}

fn page_at(page: u8) -> u64 {
    BUFFERS + PAGE * u64::from(page)
}

/// Takes arguments off the front of a script, zeroes when it has run out.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// Up to `length` bytes.
    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.take(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Width of a register access.
    pub(crate) fn width(&mut self) -> usize {
        1 << (self.u8() % 4)
    }

    /// A queue there is.
    fn queue(&mut self, rig: &Rig) -> u16 {
        let queues = u16::try_from(rig.device.doorbells().len()).unwrap_or(1);
        u16::from(self.u8()) % queues
    }
}

/// Writes scripts for [`drive`].
#[derive(Debug, Default)]
pub(crate) struct Script(Vec<u8>);

impl Script {
    /// Offers `bytes` for the device to read, in the page of that number.
    #[must_use]
    pub(crate) fn packet(mut self, queue: u8, page: u8, bytes: &[u8]) -> Script {
        let length = u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes();
        self.0.extend([action::PACKET, queue, page]);
        self.0.extend(length);
        self.0.extend(bytes);
        self
    }

    /// Offers `bytes` for the device to read and `room` bytes for it to write, as one chain.
    #[must_use]
    pub(crate) fn request(mut self, queue: u8, page: u8, bytes: &[u8], room: u16) -> Script {
        let length = u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes();
        self.0.extend([action::REQUEST, queue, page]);
        self.0.extend(room.to_le_bytes());
        self.0.extend(length);
        self.0.extend(bytes);
        self
    }

    /// Offers a buffer of `length` bytes for the device to write, in the page of that number.
    #[must_use]
    pub(crate) fn buffer(mut self, queue: u8, page: u8, length: u16) -> Script {
        self.0.extend([action::BUFFER, queue, page]);
        self.0.extend(length.to_le_bytes());
        self
    }

    /// Has a queue served.
    #[must_use]
    pub(crate) fn serve(mut self, queue: u8) -> Script {
        self.0.extend([action::SERVE, queue]);
        self
    }

    /// Writes and reads registers and configuration space, pauses, resumes and restarts: what concerns every device.
    #[must_use]
    pub(crate) fn upheaval(mut self) -> Script {
        self.0.extend([
            action::BAR_READ,
            0,
            0,
            3,
            action::BAR_WRITE,
            0x16,
            0,
            1,
            0,
            0,
            action::CONFIG_READ,
            0x10,
            2,
        ]);
        self.0.extend([action::CONFIG_WRITE, 4, 1, 6, 0, action::PAUSE, action::EVENT, 0, action::RESUME]);
        self.0.extend([action::CHAIN, 0, 0, 0, 1, 0, 64, 0, 0, 0, 0, 1, 64, 0, 0, 0, 2]);
        self.0.extend([action::RING, 0, 1, 2, 0, 2, 7, 0, action::MAKE_UP, action::START]);
        self
    }

    /// The script.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Zeroes the pages that scripts write, so that a script does the same whatever ran before it.
pub(crate) fn wipe(rig: &Rig) {
    let pages = vec![0; usize::try_from(PAGE).unwrap_or(0) * 256];
    rig.ram().memory().write_slice(&pages, GuestAddress(BUFFERS)).expect("the pages lie in RAM");
}
