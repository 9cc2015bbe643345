//! State of the clock: its memory. The time is the host's and moves with nobody.

use super::device::{BYTES, Cmos};
use crate::state::{Fields, Payload, StateError};

/// The device as read from a state.
#[derive(Debug)]
pub(crate) struct CmosState {
    index: u8,
    memory: [u8; BYTES],
}

impl Cmos {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.u8(self.index);
        out.blob(&self.memory);
    }

    /// Takes a state.
    pub(crate) fn restore(&mut self, state: &CmosState) {
        (self.index, self.memory) = (state.index & 0x7f, state.memory);
    }
}

impl CmosState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<CmosState, StateError> {
        let index = fields.u8()?;
        let memory = fields.blob("memory", BYTES)?;
        let wrong = fields.invalid("memory length", memory.len() as u64, "it must be 128");
        let memory = memory.try_into().map_err(|_| wrong)?;
        fields.finish()?;
        Ok(CmosState { index, memory })
    }
}
