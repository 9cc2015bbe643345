//! Moving bytes and control messages between queues and terminals, a bounded amount per turn.

use super::control::{CONTROL_BYTES, Control, event};
use super::device::{CONTROL_RX, CONTROL_TX, Console, rx_of};
use crate::devices::net::Transmit;
use crate::limits::{CONSOLE_TURN_CHAINS, CONSOLE_WRITE_BYTES};
use crate::virtio::{ChainError, Io, Turn};

impl Console {
    /// Something happened on the host's side, or port 0 has a receive buffer.
    pub(super) fn turn(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let mut more = self.attend();
        for number in 0..self.ports.len() {
            more |= self.receive(number, io)? == Turn::More;
        }
        // After receiving: a client that has left is noticed when its last words are read.
        more |= self.inform(io)? == Turn::More;
        Ok(if more { Turn::More } else { Turn::Idle })
    }

    /// Puts a client's words into guest buffers.
    pub(super) fn receive(&mut self, number: usize, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let port = &self.ports[number];
        let open = port.state.open || number == 0 && !Console::is_multiport(io);
        let queue = rx_of(number);
        let (mut delivered, mut turn) = (false, Turn::More);
        for _ in 0..CONSOLE_TURN_CHAINS {
            if !open || !io.next(queue)? {
                turn = Turn::Idle;
                break;
            }
            let room = writable(io)?.min(self.bytes.len());
            let length = port.link.terminal.read(&mut self.bytes[..room]);
            if length == 0 {
                io.unpop(queue);
                turn = Turn::Idle;
                break;
            }
            io.write(&self.bytes[..length])?;
            io.complete(queue, u32::try_from(length).unwrap_or(0))?;
            self.metrics.rx_bytes += length as u64;
            delivered = true;
        }
        if delivered {
            io.signal(queue)?;
        }
        Ok(turn)
    }

    /// Takes the guest's words while there is room for them.
    pub(super) fn transmit(&mut self, number: usize, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let queue = rx_of(number) + 1;
        let (mut completed, mut turn) = (false, Turn::More);
        for _ in 0..CONSOLE_TURN_CHAINS {
            if !io.next(queue)? {
                turn = Turn::Idle;
                break;
            }
            if self.send(number, io)? == Transmit::Full {
                io.unpop(queue);
                self.metrics.tx_full += 1;
                turn = Turn::Idle;
                break;
            }
            io.complete(queue, 0)?;
            completed = true;
        }
        if completed {
            io.signal(queue)?;
        }
        Ok(turn)
    }

    /// Offers the words in the chain popped last, from where an earlier offer ended.
    fn send(&mut self, number: usize, io: &Io<'_>) -> Result<Transmit, ChainError> {
        if io.chain.writable_bytes() > 0 {
            return Err(ChainError::Direction);
        }
        let length = io.read(&mut self.bytes)?;
        let port = &mut self.ports[number];
        let from = port.taken.min(length);
        for piece in self.bytes[from..length].chunks(CONSOLE_WRITE_BYTES) {
            if port.link.port.write(piece) == Transmit::Full {
                return Ok(Transmit::Full);
            }
            port.taken += piece.len();
            self.metrics.tx_bytes += piece.len() as u64;
        }
        port.taken = 0;
        self.metrics.tx_dropped += io.chain.readable_bytes() - length as u64;
        Ok(Transmit::Taken)
    }

    /// Takes control messages of the driver's.
    pub(super) fn listen(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        let (mut completed, mut turn) = (false, Turn::More);
        for _ in 0..CONSOLE_TURN_CHAINS {
            if !io.next(CONTROL_TX)? {
                turn = Turn::Idle;
                break;
            }
            if io.chain.writable_bytes() > 0 {
                return Err(ChainError::Direction);
            }
            let mut bytes = [0; CONTROL_BYTES];
            let whole = io.read(&mut bytes)? == CONTROL_BYTES;
            if !whole || !self.hear(Control::decode(bytes)) {
                self.metrics.control_dropped += 1;
            }
            io.complete(CONTROL_TX, 0)?;
            completed = true;
        }
        if completed {
            io.signal(CONTROL_TX)?;
        }
        // A port may have been opened, and there may be answers.
        Ok(if self.turn(io)? == Turn::More { Turn::More } else { turn })
    }

    /// Takes one message; false if it makes no sense.
    fn hear(&mut self, message: Control) -> bool {
        if (message.event, message.value) == (event::DEVICE_READY, 1) {
            self.ports.iter_mut().for_each(|port| port.state.announce());
            return true;
        }
        let number = usize::try_from(message.id).unwrap_or(usize::MAX);
        let Some(port) = self.ports.get_mut(number) else { return false };
        match message.event {
            event::PORT_READY => port.state.added(message.value == 1, number == 0),
            event::PORT_OPEN => port.state.open = message.value != 0,
            _ => return false,
        }
        true
    }

    /// Sends the driver what it is owed.
    pub(super) fn inform(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        if self.apply_sizes() && Console::shows_size(io) {
            io.transport.signal_config();
        }
        let mut sent = false;
        while Console::is_multiport(io) && self.has_message() && io.next(CONTROL_RX)? {
            let room = writable(io)?;
            let Some(length) = self.next_message() else {
                io.unpop(CONTROL_RX);
                break;
            };
            if room < length {
                return Err(ChainError::Short);
            }
            io.write(&self.bytes[..length])?;
            io.complete(CONTROL_RX, u32::try_from(length).unwrap_or(0))?;
            sent = true;
        }
        if sent {
            io.signal(CONTROL_RX)?;
        }
        Ok(Turn::Idle)
    }

    fn has_message(&self) -> bool {
        self.ports.iter().enumerate().any(|(number, port)| {
            let mut state = port.state;
            state.next(port.client(number)).is_some()
        })
    }

    /// Puts the next message into the buffer; its length.
    fn next_message(&mut self) -> Option<usize> {
        let next = self.ports.iter_mut().enumerate().find_map(|(number, port)| {
            let client = port.client(number);
            port.state.next(client).map(|message| (number, message))
        });
        let (number, (event, value)) = next?;
        let port = &self.ports[number];
        let header = Control { id: u32::try_from(number).unwrap_or(0), event, value };
        let (columns, rows) = port.state.size;
        let size = [columns.to_le_bytes(), rows.to_le_bytes()].concat();
        let behind: &[u8] = match event {
            event::PORT_NAME => port.name.as_bytes(),
            event::RESIZE => &size,
            _ => &[],
        };
        let length = CONTROL_BYTES + behind.len();
        self.bytes[..CONTROL_BYTES].copy_from_slice(&header.encode());
        self.bytes[CONTROL_BYTES..length].copy_from_slice(behind);
        Some(length)
    }
}

/// Bytes that fit the buffer popped last.
fn writable(io: &Io<'_>) -> Result<usize, ChainError> {
    match usize::try_from(io.chain.writable_bytes()).unwrap_or(usize::MAX) {
        _ if io.chain.readable_bytes() > 0 => Err(ChainError::Direction),
        0 => Err(ChainError::Short),
        room => Ok(room),
    }
}
