//! State of the power registers.

use super::device::Power;
use crate::state::{Fields, Payload, StateError};

/// The device as read from a state.
#[derive(Debug)]
pub(crate) struct PowerState {
    status: u16,
    enabled_events: u16,
    control: u16,
}

impl Power {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.u16(self.status);
        out.u16(self.enabled_events);
        out.u16(self.control);
    }

    /// Takes a state.
    pub(crate) fn restore(&mut self, state: &PowerState) {
        self.take(state.status, state.enabled_events, state.control);
    }
}

impl PowerState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<PowerState, StateError> {
        let state =
            PowerState { status: fields.u16()?, enabled_events: fields.u16()?, control: fields.u16()? };
        fields.finish()?;
        Ok(state)
    }
}
