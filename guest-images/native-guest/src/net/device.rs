//! The network card: a ring of empty frames for it to fill, a ring of full ones for it to send.
//!
//! The device is told of new frames once per turn of the main loop, not once per frame, and interrupts are switched
//! on only for the time the guest sleeps.

use crate::virtio::{Bus, DeviceError, Doorbell, Function, Queue as AnyQueue};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::transport::{DeviceType, Transport};

/// Entries of each queue, and frames of each ring.
pub(crate) const QUEUE_SIZE: usize = 256;

/// `virtio_net_hdr` of a modern device.
const HEADER_BYTES: usize = 12;

/// Largest Ethernet frame without its check sequence.
pub(crate) const MAX_FRAME_BYTES: usize = 1514;

const QUEUE_RX: u16 = 0;
const QUEUE_TX: u16 = 1;

/// Interrupt vectors: one per queue.
const VECTORS: u16 = 2;

const FEATURE_MAC: u64 = 1 << 5;

/// A buffer for one frame; two fill a page, none crosses one.
#[repr(C, align(2048))]
#[derive(Clone)]
struct Frame([u8; 2048]);

type Queue = AnyQueue<QUEUE_SIZE>;

fn frames() -> Box<[Frame]> {
    alloc::vec![Frame([0; 2048]); QUEUE_SIZE].into_boxed_slice()
}

/// The card.
pub(crate) struct NetDevice {
    // Kept for its device: dropping it resets that.
    _function: Function,
    mac: [u8; 6],
    pub(super) rx: RxRing,
    pub(super) tx: TxRing,
}

impl NetDevice {
    /// Finds the card and sets it up, with interrupts suppressed.
    pub(crate) fn new(bus: &mut Bus) -> Result<Self, DeviceError> {
        let mut function = Function::open(bus, DeviceType::Network, VECTORS)?;
        function.negotiate(FEATURE_MAC, 0)?;
        let rx = RxRing::new(&mut function)?;
        let tx = TxRing::new(&mut function)?;
        function.finish_init();
        let mac = function.read_config_space(0).map_err(|_| function.refused("it has no MAC address"))?;
        let mut card = Self { _function: function, mac, rx, tx };
        card.rx.refill();
        Ok(card)
    }

    /// The card's MAC address.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Hands empty frames back to the device and tells it of full ones, once for all of them.
    pub(crate) fn flush(&mut self) {
        self.rx.refill();
        self.tx.reclaim();
        self.tx.announce();
    }

    /// Sends one frame that smoltcp does not know how to build. Whether there was room.
    pub(crate) fn send_raw(&mut self, frame: &[u8]) -> bool {
        let room = self.tx.has_room() && frame.len() <= MAX_FRAME_BYTES;
        if room {
            self.tx.send(frame.len(), |buffer| buffer.copy_from_slice(frame));
        }
        room
    }

    /// Switches interrupts on for a sleep. Returns whether sleeping is right: nothing arrived in the meantime.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.rx.queue.set_dev_notify(true);
        self.tx.queue.set_dev_notify(!self.tx.has_room());
        // The device looks at the flag after it published a frame, we look for frames after we published the
        // flag: the fence makes sure that at least one of us sees the other.
        fence(Ordering::SeqCst);
        !self.rx.queue.can_pop() && (self.tx.has_room() || !self.tx.queue.can_pop())
    }

    /// Switches interrupts off again.
    pub(crate) fn end_sleep(&mut self) {
        self.rx.queue.set_dev_notify(false);
        self.tx.queue.set_dev_notify(false);
    }
}

/// Frames the device fills.
pub(super) struct RxRing {
    queue: Queue,
    doorbell: Doorbell,
    frames: Box<[Frame]>,
    /// Which frame a token of the queue stands for.
    frame_of: [u16; QUEUE_SIZE],
    /// Frames the device does not have.
    empty: Vec<u16>,
}

impl RxRing {
    fn new(function: &mut Function) -> Result<Self, DeviceError> {
        let (queue, doorbell) = function.queue(QUEUE_RX)?;
        Ok(Self { queue, doorbell, frames: frames(), frame_of: [0; QUEUE_SIZE], empty: all_frames() })
    }

    /// The next frame received. It stays valid until [`refill`](Self::refill).
    pub(super) fn receive(&mut self) -> Option<&mut [u8]> {
        let token = self.queue.peek_used()?;
        let index = self.frame_of[usize::from(token) % QUEUE_SIZE];
        let frame = &mut self.frames[usize::from(index)];
        // SAFETY: `frame_of` tells the buffer that was added under this token; it has stayed in `frames` since.
        let filled = unsafe { self.queue.pop_used(token, &[], &mut [&mut frame.0[..]]) };
        self.empty.push(index);
        // A device that reports nonsense gets an empty frame taken note of, which the stack drops.
        let len =
            filled.map_or(0, |len| usize::try_from(len).unwrap_or(0)).clamp(HEADER_BYTES, frame.0.len());
        Some(&mut frame.0[HEADER_BYTES..len])
    }

    fn refill(&mut self) {
        if self.empty.is_empty() {
            return;
        }
        while let Some(index) = self.empty.pop() {
            let frame = &mut self.frames[usize::from(index)];
            // SAFETY: the frame is not read or written until `receive` pops its token: only frames in `empty`,
            // which this one just left, are touched elsewhere. `frames` is never moved or freed while the device
            // lives, since both live in the same `NetDevice`, for ever.
            match unsafe { self.queue.add(&[], &mut [&mut frame.0[..]]) } {
                Ok(token) => self.frame_of[usize::from(token) % QUEUE_SIZE] = index,
                Err(_) => {
                    self.empty.push(index);
                    break;
                }
            }
        }
        self.doorbell.ring_if_wanted(&self.queue);
    }
}

/// Frames the device sends.
pub(super) struct TxRing {
    queue: Queue,
    doorbell: Doorbell,
    frames: Box<[Frame]>,
    frame_of: [u16; QUEUE_SIZE],
    /// Frames the device does not have, the last used on top: a quiet guest sends from the same few pages.
    free: Vec<u16>,
    unannounced: bool,
}

impl TxRing {
    fn new(function: &mut Function) -> Result<Self, DeviceError> {
        let (queue, doorbell) = function.queue(QUEUE_TX)?;
        let frame_of = [0; QUEUE_SIZE];
        Ok(Self { queue, doorbell, frames: frames(), frame_of, free: all_frames(), unannounced: false })
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes back the frames that were sent.
    pub(super) fn reclaim(&mut self) {
        while let Some(token) = self.queue.peek_used() {
            let index = self.frame_of[usize::from(token) % QUEUE_SIZE];
            let frame = &self.frames[usize::from(index)];
            let sent = usize::from(self.sent_len(index));
            // SAFETY: `frame_of` tells the buffer that was added under this token, `sent_len` how much of it.
            if unsafe { self.queue.pop_used(token, &[&frame.0[..sent]], &mut []) }.is_err() {
                break;
            }
            self.free.push(index);
        }
    }

    /// The length a frame was added with, which is kept in its last two bytes.
    fn sent_len(&self, index: u16) -> u16 {
        let [.., low, high] = self.frames[usize::from(index)].0;
        u16::from_le_bytes([low, high])
    }

    /// Queues a frame of `len` bytes that `fill` writes. Only to be called while there is room.
    pub(super) fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let index = self.free.pop().expect("a frame is sent only while there is room");
        let frame = &mut self.frames[usize::from(index)];
        let end = HEADER_BYTES + len;
        frame.0[..HEADER_BYTES].fill(0);
        let result = fill(&mut frame.0[HEADER_BYTES..end]);
        let [low, high] = u16::try_from(end).expect("a frame fits its buffer").to_le_bytes();
        frame.0[2046..].copy_from_slice(&[low, high]);
        // SAFETY: the frame is left alone until `reclaim` pops its token, since it is no longer in `free`; `frames`
        // lives as long as the device, see `RxRing::refill`.
        match unsafe { self.queue.add(&[&frame.0[..end]], &mut []) } {
            Ok(token) => self.frame_of[usize::from(token) % QUEUE_SIZE] = index,
            Err(_) => self.free.push(index),
        }
        self.unannounced = true;
        result
    }

    fn announce(&mut self) {
        if self.unannounced {
            self.unannounced = false;
            self.doorbell.ring_if_wanted(&self.queue);
        }
    }
}

fn all_frames() -> Vec<u16> {
    (0..).take(QUEUE_SIZE).collect()
}
