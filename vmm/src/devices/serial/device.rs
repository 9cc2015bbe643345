//! The UART, from `vm-superio`, plus a queue for input that does not fit its FIFO yet.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::SerialPort;
use super::persist::FIFO_BYTES;
use crate::irq;
use crate::limits::SERIAL_INPUT_BYTES_MAX;

/// The register whose bit 4 is loopback.
const MODEM_CONTROL: u8 = 4;

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
        if register == MODEM_CONTROL {
            self.feed();
        }
    }

    /// Queues input for the guest; returns how many bytes were taken.
    pub(crate) fn input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(SERIAL_INPUT_BYTES_MAX.saturating_sub(self.waiting.len()));
        self.waiting.extend(&bytes[..taken]);
        self.feed();
        taken
    }

    /// Hands the UART its next byte once it has none. One at a time: it takes the "data available" interrupt back with every
    /// byte read, also when more are in its FIFO, and a driver that stops reading there would never be called again.
    /// In loopback it takes none.
    fn feed(&mut self) {
        if self.uart.fifo_capacity() == FIFO_BYTES
            && let Some(byte) = self.waiting.front()
            && self.uart.enqueue_raw_bytes(&[*byte]).is_ok_and(|taken| taken == 1)
        {
            self.waiting.pop_front();
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

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::super::StreamPort;
    use super::*;

    const DATA: u8 = 0;
    const INTERRUPT_ENABLE: u8 = 1;
    const INTERRUPT_IDENTIFICATION: u8 = 2;
    const LINE_STATUS: u8 = 5;
    /// Linux reads so many bytes per interrupt at most.
    const READS_PER_INTERRUPT: usize = 256;

    fn device() -> SerialDevice {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut device = SerialDevice::new(line, Arc::new(StreamPort::new(io::sink())));
        device.write(INTERRUPT_ENABLE, &[1]);
        device
    }

    /// A driver's interrupt handler.
    fn interrupt(device: &mut SerialDevice, got: &mut Vec<u8>) -> bool {
        let pending = device.read(INTERRUPT_IDENTIFICATION) & 1 == 0;
        let mut left = READS_PER_INTERRUPT;
        while pending && left > 0 && device.read(LINE_STATUS) & 1 == 1 {
            got.push(device.read(DATA));
            left -= 1;
        }
        pending
    }

    /// What was left in the FIFO after 256 bytes had no interrupt any more.
    #[test]
    fn a_pasted_line_longer_than_an_interrupt_reads_arrives_whole() {
        let (mut device, mut got) = (device(), Vec::new());
        let line: Vec<u8> = (b'a'..=b'z').cycle().take(1000).collect();
        for length in [1, 63, 64, 65, 255, 256, 257, 270, 1000] {
            got.clear();
            assert_eq!(device.input(&line[..length]), length);
            while interrupt(&mut device, &mut got) {}
            assert_eq!(got, line[..length]);
        }
    }

    #[test]
    fn what_is_typed_during_a_loopback_test_arrives_after_it() {
        let (mut device, mut got) = (device(), Vec::new());
        device.write(MODEM_CONTROL, &[0x10]);
        assert_eq!(device.input(b"typed"), 5);
        device.write(MODEM_CONTROL, &[0]);
        while interrupt(&mut device, &mut got) {}
        assert_eq!(got, b"typed");
    }
}
