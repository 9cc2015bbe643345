//! The paravirtual console: a greeting, and an echo of each line.

use crate::virtio::{Bus, DeviceError, Function, IdentityMap};
use alloc::vec::Vec;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::transport::DeviceType;

/// Longest line echoed at once, in bytes; of a longer one, the parts are.
const MAX_LINE_BYTES: usize = 4096;

/// The first port of the console, without the multiport protocol.
pub(crate) struct Terminal {
    console: VirtIOConsole<IdentityMap, Function>,
    line: Vec<u8>,
}

impl Terminal {
    /// Opens the console and greets. Interrupts stay on: a console is quiet, and one too many only wakes for nothing.
    pub(crate) fn new(bus: &mut Bus) -> Result<Self, DeviceError> {
        let failed = |error| DeviceError::Driver(DeviceType::Console, error);
        let function = Function::open(bus, DeviceType::Console, 1)?;
        let mut console = VirtIOConsole::new(function).map_err(failed)?;
        console.send_bytes(b"console: hello\n").map_err(failed)?;
        Ok(Self { console, line: Vec::new() })
    }

    /// Echoes complete lines. Whether anything was typed.
    pub(crate) fn turn(&mut self) -> bool {
        let mut typed = false;
        while let Ok(Some(byte)) = self.console.recv(true) {
            typed = true;
            self.line.push(byte);
            if byte == b'\n' || self.line.len() >= MAX_LINE_BYTES {
                // A console nobody reads is nobody's loss.
                let _ = self.console.send_bytes(&self.line);
                self.line.clear();
            }
        }
        typed
    }
}
