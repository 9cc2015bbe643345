//! The console on COM1: one line per message, nothing read.

use crate::port::Port;
use core::fmt::{self, Write};

// SAFETY: the registers of a 16550 at its standard address reach no memory.
const DATA: Port = unsafe { Port::new(0x3f8) };
// SAFETY: as above.
const LINE_STATUS: Port = unsafe { Port::new(0x3fd) };

const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// Reads of the status register before a byte is sent regardless: a console that never drains must not stop the
/// guest.
const MAX_STATUS_READS: u32 = 10_000;

struct Com1;

impl Com1 {
    fn put(byte: u8) {
        for _ in 0..MAX_STATUS_READS {
            if LINE_STATUS.read_u8() & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        DATA.write_u8(byte);
    }
}

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(Self::put);
        Ok(())
    }
}

/// Prints `native-guest: MESSAGE`.
pub(crate) fn log(message: fmt::Arguments<'_>) {
    line(format_args!("native-guest: {message}"));
}

/// Prints a line as it is.
pub(crate) fn line(message: fmt::Arguments<'_>) {
    // `Com1` never fails, and an error of a value's own formatting has no better place to go.
    let _ = write!(Com1, "{message}\r\n");
}
