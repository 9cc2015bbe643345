//! State of the clock: its memory, and how it differs from the host's, which keeps time everywhere.

use super::clock::Clock;
use super::device::BYTES;
use crate::state::{Fields, Payload, StateError};

/// Furthest a guest's clock can be from the host's, seconds: 10,000 years.
const OFFSET_S_MAX: u64 = 10_000 * 366 * 86_400;

/// The device as read from a state.
#[derive(Debug)]
pub(crate) struct CmosState {
    index: u8,
    memory: [u8; BYTES],
    offset_s: i64,
    checked_s: i64,
}

impl Clock {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.u8(self.cmos.index);
        out.blob(&self.cmos.memory);
        out.i64(self.cmos.offset_s);
        out.i64(self.cmos.checked_s);
    }

    /// Takes a state; the machine is paused. An alarm that was due in between goes off on resume.
    pub(crate) fn restore(&mut self, state: &CmosState) {
        (self.cmos.index, self.cmos.memory) = (state.index & 0x7f, state.memory);
        (self.cmos.offset_s, self.cmos.checked_s) = (state.offset_s, state.checked_s);
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
        let offset_s = fields.i64()?;
        if offset_s.unsigned_abs() > OFFSET_S_MAX {
            return Err(fields.invalid("clock offset", offset_s.unsigned_abs(), "no guest can set that"));
        }
        let checked_s = fields.i64()?;
        fields.finish()?;
        Ok(CmosState { index, memory, offset_s, checked_s })
    }
}
