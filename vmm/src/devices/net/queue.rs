//! Moving frames between queues and port. Runs on the device thread, a bounded number of frames per turn.

use std::io;

use super::device::{CTRL, HEADER_BYTES, Net, RX, TX};
use super::port::Transmit;
use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, NIC_TURN_FRAMES};
use crate::virtio::{ChainError, Io, Turn};
use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK};

/// Offset of `num_buffers` in the receive header.
const NUM_BUFFERS: usize = 10;

const CONTROL_OK: u8 = 0;
const CONTROL_ERROR: u8 = 1;

impl Net {
    /// Empties the tap while nobody may see its frames.
    pub(super) fn discard(&mut self) -> Turn {
        for _ in 0..NIC_TURN_FRAMES {
            if self.attached.tap.read(&mut self.frame[..]).is_err() {
                return Turn::Idle;
            }
            self.metrics.rx_discarded += 1;
        }
        Turn::More
    }

    pub(super) fn receive(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut turn = Turn::More;
        let mut delivered = false;
        for _ in 0..NIC_TURN_FRAMES {
            if !io.next(RX)? {
                turn = Turn::Idle;
                break;
            }
            let Some(length) = self.next_frame() else {
                io.unpop(RX);
                turn = Turn::Idle;
                break;
            };
            delivered |= self.deliver(io, length)?;
        }
        if delivered {
            io.signal(RX)?;
        }
        Ok(turn)
    }

    /// Puts the frame in work into the chain popped last; false if it was dropped instead.
    fn deliver(&mut self, io: &mut Io<'_>, length: usize) -> Result<bool, ChainError> {
        let whole = HEADER_BYTES + length;
        if length > FRAME_BYTES_MAX || io.chain.writable_bytes() < whole as u64 {
            io.unpop(RX);
            self.metrics.rx_dropped += 1;
            return Ok(false);
        }
        self.frame[..HEADER_BYTES].fill(0);
        self.frame[NUM_BUFFERS] = 1;
        self.attached.port.deliver(&self.frame[HEADER_BYTES..whole]);
        io.write(&self.frame[..whole])?;
        io.complete(RX, u32::try_from(whole).unwrap_or(0))?;
        self.metrics.rx_frames += 1;
        self.metrics.rx_bytes += length as u64;
        Ok(true)
    }

    pub(super) fn transmit(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut turn = Turn::More;
        let mut completed = false;
        for _ in 0..NIC_TURN_FRAMES {
            if !io.next(TX)? {
                turn = Turn::Idle;
                break;
            }
            if self.send(io)? == Transmit::Full {
                io.unpop(TX);
                self.metrics.tx_full += 1;
                turn = Turn::Idle;
                break;
            }
            io.complete(TX, 0)?;
            completed = true;
        }
        if completed {
            io.signal(TX)?;
        }
        Ok(turn)
    }

    /// Offers the frame in the chain popped last to the port.
    fn send(&mut self, io: &mut Io<'_>) -> Result<Transmit, ChainError> {
        if io.chain.writable_bytes() > 0 {
            return Err(ChainError::Direction);
        }
        let whole = usize::try_from(io.chain.readable_bytes()).unwrap_or(usize::MAX);
        let length = whole.saturating_sub(HEADER_BYTES);
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) {
            self.metrics.tx_dropped += 1;
            return Ok(Transmit::Taken);
        }
        io.read(&mut self.frame[..whole])?;
        let sent = self.attached.port.transmit(&self.frame[HEADER_BYTES..whole]);
        if sent == Transmit::Taken {
            self.metrics.tx_frames += 1;
            self.metrics.tx_bytes += length as u64;
        }
        Ok(sent)
    }

    /// Answers control commands: only the acknowledgement of an announcement is one we know.
    pub(super) fn control(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        for _ in 0..NIC_TURN_FRAMES {
            if !io.next(CTRL)? {
                return Ok(Turn::Idle);
            }
            let mut command = [0; 2];
            let read = io.read(&mut command)?;
            let acknowledged = [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK].map(u32::from);
            let known = read == 2 && command.map(u32::from) == acknowledged;
            self.announcing &= !known;
            let reply = if known { CONTROL_OK } else { CONTROL_ERROR };
            if io.write(&[reply])? != 1 {
                return Err(ChainError::Direction);
            }
            io.complete(CTRL, 1)?;
            io.signal(CTRL)?;
        }
        Ok(Turn::More)
    }

    /// Fetches the next frame for the guest behind the header space; its length, which may exceed what is allowed
    /// by the one byte that shows so.
    fn next_frame(&mut self) -> Option<usize> {
        if let Some(frame) = self.backlog.pop_front() {
            self.frame[HEADER_BYTES..HEADER_BYTES + frame.len()].copy_from_slice(&frame);
            return Some(frame.len());
        }
        loop {
            match self.attached.tap.read(&mut self.frame[HEADER_BYTES..]) {
                // A socket in place of a tap reads zero at its end, a tap never does.
                Ok(0) => return None,
                Ok(length) => return Some(length),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}
