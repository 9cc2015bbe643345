//! Moving frames between queues and port. Runs on the device thread, a bounded number of frames per turn.

use std::io;

use vm_memory::{Bytes, GuestAddress};

use super::device::{Net, rx, tx};
use super::header::{HEADER_BYTES, NUM_BUFFERS, PACKET_BYTES_MAX, Work, narrow};
use super::port::Transmit;
use crate::limits::{NIC_TURN_BYTES, NIC_TURN_FRAMES, QUEUE_SIZE};
use crate::virtio::{ChainError, Io, Turn};

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// The guest has it.
    Whole,
    /// No buffers it could have would hold it.
    Never,
    /// It needs more buffers than there are now.
    NotYet,
}

/// What is left of a turn.
struct Allowance {
    frames: usize,
    bytes: usize,
}

impl Allowance {
    fn new() -> Allowance {
        Allowance { frames: NIC_TURN_FRAMES, bytes: NIC_TURN_BYTES }
    }

    fn spend(&mut self, bytes: usize) {
        self.frames -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_spent(&self) -> bool {
        self.frames == 0 || self.bytes == 0
    }
}

impl Net {
    /// Empties a queue of the tap while nobody may see its frames.
    pub(super) fn discard(&mut self, pair: u16) -> Turn {
        for _ in 0..NIC_TURN_FRAMES {
            if self.attached.tap.read(pair, &mut self.packet[..]).is_err() {
                return Turn::Idle;
            }
            self.metrics.rx_discarded += 1;
        }
        Turn::More
    }

    /// Shows the port what the tap has for a guest that stands still.
    pub(super) fn take_ahead(&mut self, pair: u16) -> Turn {
        for _ in 0..NIC_TURN_FRAMES {
            let Ok(bytes) = self.attached.tap.read(pair, &mut self.packet[..]) else { return Turn::Idle };
            self.attached.port.deliver(&self.packet[..bytes]);
            let packet: Box<[u8]> = self.packet[..bytes].into();
            self.queue_for(usize::from(pair), &packet);
        }
        Turn::More
    }

    pub(super) fn receive(&mut self, pair: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let before = self.metrics.rx_frames;
        let turn = self.receive_turn(pair, io)?;
        if self.metrics.rx_frames > before {
            io.signal(rx(pair))?;
        }
        Ok(turn)
    }

    fn receive_turn(&mut self, pair: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut left = Allowance::new();
        while !left.is_spent() {
            if self.for_guest.holds() {
                self.metrics.rx_throttled += 1;
                return Ok(Turn::Idle);
            }
            if !io.next(rx(pair))? {
                return Ok(Turn::Idle);
            }
            let Some(bytes) = self.next_packet(pair) else {
                io.unpop(rx(pair));
                return Ok(Turn::Idle);
            };
            left.spend(bytes);
            if self.deliver(pair, bytes, io)? == Placed::NotYet {
                self.backlogs[usize::from(pair)].push_front(self.packet[..bytes].into());
                return Ok(Turn::Idle);
            }
        }
        Ok(Turn::More)
    }

    /// Gives the packet in work to the guest, beginning with the chain popped last, or drops it.
    fn deliver(&mut self, pair: u16, bytes: usize, io: &mut Io<'_>) -> Result<Placed, ChainError> {
        let Some(work) = narrow(&mut self.packet[..bytes], self.agreed.for_guest) else {
            io.unpop(rx(pair));
            self.metrics.rx_dropped += 1;
            return Ok(Placed::Never);
        };
        let placed = self.place(pair, bytes, io)?;
        match placed {
            Placed::Whole => self.count_received(bytes, work),
            Placed::Never => self.metrics.rx_dropped += 1,
            Placed::NotYet => {}
        }
        Ok(placed)
    }

    /// Puts the packet in work into the chain popped last and, if the driver merges buffers, as many more as it takes. Chains
    /// that do not hold it all are given back.
    fn place(&mut self, pair: u16, bytes: usize, io: &mut Io<'_>) -> Result<Placed, ChainError> {
        let header_at = io.chain.writable_before(HEADER_BYTES as u64);
        self.packet[NUM_BUFFERS] = 1;
        let rest = self.fill(pair, bytes, io)?;
        self.packet[NUM_BUFFERS] = 0;
        let first = self.parts.first().map_or(0, |(_, bytes)| *bytes as usize);
        if rest > 0 || first < HEADER_BYTES {
            self.parts.iter().for_each(|_| io.unpop(rx(pair)));
            let hopeless =
                !self.agreed.merges || first < HEADER_BYTES || self.parts.len() >= usize::from(QUEUE_SIZE);
            return Ok(if hopeless { Placed::Never } else { Placed::NotYet });
        }
        self.attached.port.deliver(&self.packet[..bytes]);
        if self.parts.len() > 1 {
            write_count(io, &header_at, self.parts.len())?;
        }
        for (head, bytes) in &self.parts {
            io.complete_head(rx(pair), *head, *bytes)?;
        }
        Ok(Placed::Whole)
    }

    /// Writes as much of the packet in work as there are chains for, and notes them; returns how many bytes are left.
    fn fill(&mut self, pair: u16, bytes: usize, io: &mut Io<'_>) -> Result<usize, ChainError> {
        self.parts.clear();
        let mut done = 0;
        loop {
            let part = io.write(&self.packet[done..bytes])?;
            self.parts.push((io.chain.head(), u32::try_from(part).unwrap_or(0)));
            done += part;
            if done == bytes || !self.agreed.merges || !io.next(rx(pair))? {
                return Ok(bytes - done);
            }
        }
    }

    fn count_received(&mut self, bytes: usize, work: Work) {
        let frame = (bytes - HEADER_BYTES) as u64;
        self.for_guest.count(frame);
        self.metrics.rx_frames += 1;
        self.metrics.rx_bytes += frame;
        self.metrics.rx_large += u64::from(work == Work::Segments);
    }

    pub(super) fn transmit(&mut self, pair: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut left = Allowance::new();
        let turn = self.transmit_turn(pair, &mut left, io)?;
        if left.frames < NIC_TURN_FRAMES {
            io.signal(tx(pair))?;
        }
        Ok(turn)
    }

    fn transmit_turn(
        &mut self,
        pair: u16,
        left: &mut Allowance,
        io: &mut Io<'_>,
    ) -> Result<Turn, ChainError> {
        while !left.is_spent() {
            if self.from_guest.holds() {
                self.metrics.tx_throttled += 1;
                return Ok(Turn::Idle);
            }
            if !io.next(tx(pair))? {
                return Ok(Turn::Idle);
            }
            let bytes = usize::try_from(io.chain.readable_bytes()).unwrap_or(usize::MAX);
            if self.send(pair, bytes, io)? == Transmit::Full {
                io.unpop(tx(pair));
                self.metrics.tx_full += 1;
                return Ok(Turn::Idle);
            }
            io.complete(tx(pair), 0)?;
            left.spend(bytes);
        }
        Ok(Turn::More)
    }

    /// Offers the packet in the chain popped last to the port.
    fn send(&mut self, pair: u16, bytes: usize, io: &mut Io<'_>) -> Result<Transmit, ChainError> {
        if io.chain.writable_bytes() > 0 {
            return Err(ChainError::Direction);
        }
        if bytes > PACKET_BYTES_MAX {
            self.metrics.tx_dropped += 1;
            return Ok(Transmit::Taken);
        }
        io.read(&mut self.packet[..bytes])?;
        let Some(work) = narrow(&mut self.packet[..bytes], self.agreed.from_guest) else {
            self.metrics.tx_dropped += 1;
            return Ok(Transmit::Taken);
        };
        let sent = self.attached.port.transmit(pair, &self.packet[..bytes]);
        if sent == Transmit::Taken {
            let frame = (bytes - HEADER_BYTES) as u64;
            self.from_guest.count(frame);
            self.metrics.tx_frames += 1;
            self.metrics.tx_bytes += frame;
            self.metrics.tx_large += u64::from(work == Work::Segments);
        }
        Ok(sent)
    }

    /// Fetches the next packet for the guest; its length, which may exceed what is allowed by the one byte that shows so.
    fn next_packet(&mut self, pair: u16) -> Option<usize> {
        if let Some(packet) = self.backlogs[usize::from(pair)].pop_front() {
            self.packet[..packet.len()].copy_from_slice(&packet);
            return Some(packet.len());
        }
        loop {
            match self.attached.tap.read(pair, &mut self.packet[..]) {
                // A socket in place of a tap reads zero at its end, a tap never does.
                Ok(0) => return None,
                Ok(bytes) => return Some(bytes),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

/// Tells the driver how many buffers a frame takes, in the header that has been written to `header_at`.
fn write_count(io: &Io<'_>, header_at: &[(u64, u32)], count: usize) -> Result<(), ChainError> {
    let places = header_at.iter().flat_map(|(at, bytes)| (0..u64::from(*bytes)).map(move |byte| at + byte));
    let count = u16::try_from(count).map_err(|_| ChainError::Broken)?;
    for (at, byte) in places.skip(NUM_BUFFERS).zip(count.to_le_bytes()) {
        io.memory().write_obj(byte, GuestAddress(at)).map_err(|_| ChainError::OutsideRam)?;
    }
    Ok(())
}
