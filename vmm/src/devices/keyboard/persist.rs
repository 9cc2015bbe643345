//! State of the keyboard controller.

use super::device::Keyboard;
use crate::state::{Fields, Payload, StateError};

/// The device as read from a state.
#[derive(Debug)]
pub(crate) struct KeyboardState {
    mode: u8,
    output_port: u8,
    pending: Option<u8>,
    answer: Option<u8>,
    last_was_command: bool,
}

impl Keyboard {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.u8(self.mode);
        out.u8(self.output_port);
        for byte in [self.pending, self.answer] {
            out.bool(byte.is_some());
            out.u8(byte.unwrap_or(0));
        }
        out.bool(self.last_was_command);
    }

    /// Takes a state.
    pub(crate) fn restore(&mut self, state: &KeyboardState) {
        let KeyboardState { mode, output_port, pending, answer, last_was_command } = *state;
        *self = Keyboard { mode, output_port, pending, answer, last_was_command };
    }
}

impl KeyboardState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<KeyboardState, StateError> {
        let (mode, output_port) = (fields.u8()?, fields.u8()?);
        let mut byte = |field| {
            let there = fields.bool(field)?;
            let byte = fields.u8()?;
            Ok(there.then_some(byte))
        };
        let (pending, answer) = (byte("a command waits")?, byte("an answer waits")?);
        let last_was_command = fields.bool("last was a command")?;
        fields.finish()?;
        Ok(KeyboardState { mode, output_port, pending, answer, last_was_command })
    }
}
