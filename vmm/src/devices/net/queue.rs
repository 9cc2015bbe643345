//! Moving frames between queues and port. Runs on the device thread, a bounded number of frames per turn.

use std::io;

use super::device::{CTRL, HEADER_BYTES, Inner, Nic, RX, TX};
use super::metrics::add;
use super::port::Transmit;
use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, NIC_TURN_FRAMES};
use crate::virtio::ChainError;
use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK};

/// Offset of `num_buffers` in the receive header.
const NUM_BUFFERS: usize = 10;

const CONTROL_OK: u8 = 0;
const CONTROL_ERROR: u8 = 1;

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing left to do until the next notification.
    Idle,
    /// The turn is over but not the work.
    More,
}

impl Nic {
    /// Serves queue `index` once; called when its doorbell rang, for `RX` also when the tap has frames.
    pub(crate) fn serve(&self, index: u16) {
        let mut inner = self.lock();
        if index == RX && !inner.rx_enabled {
            self.discard(&mut inner);
            return;
        }
        if inner.paused {
            inner.owed[usize::from(index)] = true;
            return;
        }
        let turn = match index {
            RX => self.receive(&mut inner),
            TX => self.transmit(&mut inner),
            _ => self.control(&mut inner),
        };
        match turn {
            Ok(Turn::Idle) => {}
            Ok(Turn::More) => self.ring(index),
            Err(error) => self.break_down(&mut inner, index, error),
        }
    }

    fn break_down(&self, inner: &mut Inner, queue: u16, error: ChainError) {
        if inner.transport.break_down() {
            add(&self.counters.breakdowns, 1);
            tracing::warn!(nic = self.number(), queue, %error, "the guest's network driver broke the rules; device stopped until it resets it");
        }
    }

    /// Empties the tap while nobody may see its frames.
    fn discard(&self, inner: &mut Inner) {
        for _ in 0..NIC_TURN_FRAMES {
            if inner.attached.tap.read(&mut inner.frame[..]).is_err() {
                return;
            }
            add(&self.counters.rx_discarded, 1);
        }
        self.ring(RX);
    }

    fn receive(&self, inner: &mut Inner) -> Result<Turn, ChainError> {
        if !inner.transport.is_live() {
            self.discard(inner);
            return Ok(Turn::Idle);
        }
        let mut turn = Turn::More;
        let mut delivered = false;
        for _ in 0..NIC_TURN_FRAMES {
            if !inner.transport.pop(RX, self.ram().memory(), &mut inner.chain)? {
                if inner.transport.rearm(RX, self.ram().memory())? {
                    continue;
                }
                turn = Turn::Idle;
                break;
            }
            let Some(length) = next_frame(inner) else {
                inner.transport.unpop(RX);
                turn = Turn::Idle;
                break;
            };
            delivered |= self.deliver(inner, length)?;
        }
        if delivered {
            inner.transport.signal(RX, self.ram().memory())?;
        }
        Ok(turn)
    }

    /// Puts the frame in `inner.frame` into the chain popped last; false if it was dropped instead.
    fn deliver(&self, inner: &mut Inner, length: usize) -> Result<bool, ChainError> {
        let whole = HEADER_BYTES + length;
        if length > FRAME_BYTES_MAX || inner.chain.writable_bytes() < whole as u64 {
            inner.transport.unpop(RX);
            add(&self.counters.rx_dropped, 1);
            return Ok(false);
        }
        inner.frame[..HEADER_BYTES].fill(0);
        inner.frame[NUM_BUFFERS] = 1;
        inner.attached.port.deliver(&inner.frame[HEADER_BYTES..whole]);
        inner.chain.write(self.ram().memory(), &inner.frame[..whole])?;
        let written = u32::try_from(whole).unwrap_or(0);
        inner.transport.complete(RX, self.ram().memory(), &inner.chain, written)?;
        add(&self.counters.rx_frames, 1);
        add(&self.counters.rx_bytes, length as u64);
        Ok(true)
    }

    fn transmit(&self, inner: &mut Inner) -> Result<Turn, ChainError> {
        if !inner.transport.is_live() {
            return Ok(Turn::Idle);
        }
        let mut turn = Turn::More;
        let mut completed = false;
        for _ in 0..NIC_TURN_FRAMES {
            if !inner.transport.pop(TX, self.ram().memory(), &mut inner.chain)? {
                if inner.transport.rearm(TX, self.ram().memory())? {
                    continue;
                }
                turn = Turn::Idle;
                break;
            }
            if self.send(inner)? == Transmit::Full {
                inner.transport.unpop(TX);
                add(&self.counters.tx_full, 1);
                turn = Turn::Idle;
                break;
            }
            inner.transport.complete(TX, self.ram().memory(), &inner.chain, 0)?;
            completed = true;
        }
        if completed {
            inner.transport.signal(TX, self.ram().memory())?;
        }
        Ok(turn)
    }

    /// Offers the frame in the chain popped last to the port.
    fn send(&self, inner: &mut Inner) -> Result<Transmit, ChainError> {
        if inner.chain.writable_bytes() > 0 {
            return Err(ChainError::Direction);
        }
        let whole = usize::try_from(inner.chain.readable_bytes()).unwrap_or(usize::MAX);
        let length = whole.saturating_sub(HEADER_BYTES);
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) {
            add(&self.counters.tx_dropped, 1);
            return Ok(Transmit::Taken);
        }
        inner.chain.read(self.ram().memory(), &mut inner.frame[..whole])?;
        let sent = inner.attached.port.transmit(&inner.frame[HEADER_BYTES..whole]);
        if sent == Transmit::Taken {
            add(&self.counters.tx_frames, 1);
            add(&self.counters.tx_bytes, length as u64);
        }
        Ok(sent)
    }

    /// Answers control commands: only the acknowledgement of an announcement is one we know.
    fn control(&self, inner: &mut Inner) -> Result<Turn, ChainError> {
        if !inner.transport.is_live() {
            return Ok(Turn::Idle);
        }
        let memory = self.ram().memory();
        for _ in 0..NIC_TURN_FRAMES {
            if !inner.transport.pop(CTRL, memory, &mut inner.chain)? {
                if inner.transport.rearm(CTRL, memory)? {
                    continue;
                }
                return Ok(Turn::Idle);
            }
            let mut command = [0; 2];
            let read = inner.chain.read(memory, &mut command)?;
            let acknowledged = [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK].map(u32::from);
            let known = read == 2 && command.map(u32::from) == acknowledged;
            inner.announcing &= !known;
            let reply = if known { CONTROL_OK } else { CONTROL_ERROR };
            if inner.chain.write(memory, &[reply])? != 1 {
                return Err(ChainError::Direction);
            }
            inner.transport.complete(CTRL, memory, &inner.chain, 1)?;
            inner.transport.signal(CTRL, memory)?;
        }
        Ok(Turn::More)
    }
}

/// Fetches the next frame for the guest behind the header space; its length, which may exceed what is allowed by
/// the one byte that shows so.
fn next_frame(inner: &mut Inner) -> Option<usize> {
    if let Some(frame) = inner.backlog.pop_front() {
        inner.frame[HEADER_BYTES..HEADER_BYTES + frame.len()].copy_from_slice(&frame);
        return Some(frame.len());
    }
    loop {
        match inner.attached.tap.read(&mut inner.frame[HEADER_BYTES..]) {
            // A socket in place of a tap reads zero at its end, a tap never does.
            Ok(0) => return None,
            Ok(length) => return Some(length),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}
