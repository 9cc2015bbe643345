//! Moving packets between queues and connections, a bounded number per turn.

use super::device::{EVENT, RX, TX, Vsock};
use super::packet::{HEADER_BYTES, Header};
use crate::limits::{VSOCK_RESETS_MAX, VSOCK_TURN_PACKETS};
use crate::virtio::{ChainError, Io, Turn};

/// Event: the connections the driver knows of are gone; it must read its context id anew.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

impl Vsock {
    /// Does a bit of everything. What comes from one side makes work for the other, so the queues are not served apart.
    pub(super) fn turn(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut more = self.transmit(io)?;
        more |= self.attend(true);
        more |= self.receive(io)?;
        Ok(if more { Turn::More } else { Turn::Idle })
    }

    /// Takes packets from the guest while there is room for what they cause; true if some may be left.
    fn transmit(&mut self, io: &mut Io<'_>) -> Result<bool, ChainError> {
        self.offer_stalled();
        let mut completed = false;
        let mut more = true;
        for _ in 0..VSOCK_TURN_PACKETS {
            // Without room this goes on when replies are read, orders carried out, or the port has room again: each
            // leads to a turn.
            let room =
                self.stalled.is_empty() && self.host.has_room() && self.resets.len() < VSOCK_RESETS_MAX;
            if !room || !io.next(TX)? {
                more = false;
                break;
            }
            self.take(io)?;
            io.complete(TX, 0)?;
            completed = true;
        }
        if completed {
            io.signal(TX)?;
        }
        Ok(more)
    }

    /// Takes the packet in the chain popped last.
    fn take(&mut self, io: &Io<'_>) -> Result<(), ChainError> {
        if io.chain.writable_bytes() > 0 {
            return Err(ChainError::Direction);
        }
        let read = io.read(&mut self.packet)?;
        let Some(header) = self.packet[..read].first_chunk::<HEADER_BYTES>().map(Header::decode) else {
            self.metrics.tx_dropped += 1;
            return Ok(());
        };
        self.hear(&header, read - HEADER_BYTES);
        Ok(())
    }

    /// Gives packets to the guest; true if some may be left that there are buffers for.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<bool, ChainError> {
        let mut delivered = false;
        let mut more = true;
        for _ in 0..VSOCK_TURN_PACKETS {
            if !self.has_word() || !io.next(RX)? {
                more = false;
                break;
            }
            let Some(length) = self.next_packet(room(io)?) else {
                io.unpop(RX);
                more = false;
                break;
            };
            io.write(&self.packet[..length])?;
            io.complete(RX, u32::try_from(length).unwrap_or(0))?;
            delivered = true;
        }
        if delivered {
            io.signal(RX)?;
        }
        Ok(more)
    }

    /// Tells the driver, once it has a buffer for it, that its connections are gone.
    pub(super) fn tell_of_reset(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        if self.reset_owed && io.next(EVENT)? {
            if io.write(&TRANSPORT_RESET)? < TRANSPORT_RESET.len() {
                return Err(ChainError::Short);
            }
            io.complete(EVENT, u32::try_from(TRANSPORT_RESET.len()).unwrap_or(0))?;
            io.signal(EVENT)?;
            self.reset_owed = false;
        }
        Ok(Turn::Idle)
    }
}

/// Bytes of payload that fit the receive buffer popped last.
fn room(io: &Io<'_>) -> Result<usize, ChainError> {
    if io.chain.readable_bytes() > 0 {
        return Err(ChainError::Direction);
    }
    let whole = usize::try_from(io.chain.writable_bytes()).unwrap_or(usize::MAX);
    whole.checked_sub(HEADER_BYTES).ok_or(ChainError::Short)
}
