//! State of the UART: its registers, and input not yet read. Output has left; the port accounts for it.

use vm_superio::serial::SerialState;

use super::device::SerialDevice;
use crate::limits::SERIAL_INPUT_BYTES_MAX;
use crate::state::{Fields, Payload, StateError};

/// Bytes of the UART's receive FIFO.
pub(super) const FIFO_BYTES: usize = 64;

/// The device as read from a state.
#[derive(Debug)]
pub(crate) struct SerialSaved {
    uart: SerialState,
    waiting: Vec<u8>,
}

impl SerialDevice {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        let state = self.uart.state();
        for register in [
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ] {
            out.u8(register);
        }
        out.blob(&state.in_buffer);
        let (head, tail) = self.waiting.as_slices();
        out.blob(head);
        out.blob(tail);
    }

    /// Takes a state.
    pub(crate) fn restore(&mut self, state: &SerialSaved) {
        self.rebuild(&state.uart, &state.waiting);
    }
}

impl SerialSaved {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<SerialSaved, StateError> {
        let uart = SerialState {
            baud_divisor_low: fields.u8()?,
            baud_divisor_high: fields.u8()?,
            interrupt_enable: fields.u8()?,
            interrupt_identification: fields.u8()?,
            line_control: fields.u8()?,
            line_status: fields.u8()?,
            modem_control: fields.u8()?,
            modem_status: fields.u8()?,
            scratch: fields.u8()?,
            in_buffer: fields.blob("receive FIFO", FIFO_BYTES)?.to_vec(),
        };
        let mut waiting = fields.blob("waiting input", SERIAL_INPUT_BYTES_MAX)?.to_vec();
        waiting.extend_from_slice(fields.blob("waiting input", SERIAL_INPUT_BYTES_MAX)?);
        fields.finish()?;
        Ok(SerialSaved { uart, waiting })
    }
}
