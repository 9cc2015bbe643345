//! The UART, from `vm-superio`, plus a queue for input that does not fit its FIFO yet.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::SerialPort;
use crate::irq;
use crate::limits::SERIAL_INPUT_BYTES_MAX;

/// The device.
pub(crate) struct SerialDevice {
    pub(super) uart: Serial<Line, NoEvents, Out>,
    pub(super) waiting: VecDeque<u8>,
    line: Arc<EventFd>,
    port: Arc<dyn SerialPort>,
}

impl std::fmt::Debug for SerialDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialDevice").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl SerialDevice {
    /// The device at power-on, with `line` as its interrupt.
    pub(crate) fn new(line: EventFd, port: Arc<dyn SerialPort>) -> SerialDevice {
        let line = Arc::new(line);
        let uart = Serial::new(Line(Arc::clone(&line)), Out(Arc::clone(&port)));
        SerialDevice { uart, waiting: VecDeque::new(), line, port }
    }

    /// Reads a register.
    pub(crate) fn read(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        if register == 0 {
            self.feed();
        }
        value
    }

    /// Writes bytes to a register; several for a string instruction on the data port.
    pub(crate) fn write(&mut self, register: u8, data: &[u8]) {
        for byte in data {
            // What can fail is the interrupt, which is then already pending, and loopback into a full FIFO,
            // where hardware drops the byte too.
            drop(self.uart.write(register, *byte));
        }
    }

    /// Queues input for the guest; returns how many bytes were taken.
    pub(crate) fn input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(SERIAL_INPUT_BYTES_MAX.saturating_sub(self.waiting.len()));
        self.waiting.extend(&bytes[..taken]);
        self.feed();
        taken
    }

    fn feed(&mut self) {
        let room = self.uart.fifo_capacity().min(self.waiting.len());
        if room > 0 {
            let chunk: Vec<u8> = self.waiting.drain(..room).collect();
            drop(self.uart.enqueue_raw_bytes(&chunk));
        }
    }

    /// Becomes the UART that `state` describes. Its interrupt is raised again if one was due.
    pub(super) fn rebuild(&mut self, state: &SerialState, waiting: &[u8]) {
        let (line, out) = (Line(Arc::clone(&self.line)), Out(Arc::clone(&self.port)));
        if let Ok(uart) = Serial::from_state(state, line, NoEvents, out) {
            self.uart = uart;
        }
        self.waiting = waiting.iter().copied().collect();
    }
}

/// The UART's interrupt line.
#[derive(Debug)]
pub(super) struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        irq::raise(&self.0);
        Ok(())
    }
}

/// The UART's transmitter.
pub(super) struct Out(Arc<dyn SerialPort>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
