//! State of the power registers.

use super::device::Power;
use crate::state::{Fields, Payload, StateError};

/// The device as read from a state.
#[derive(Debug)]
pub(crate) struct PowerState {
    enabled_events: u16,
    control: u16,
}

impl Power {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.u16(self.enabled_events);
        out.u16(self.control);
    }

    /// Takes a state.
    pub(crate) fn restore(&mut self, state: &PowerState) {
        *self = Power { enabled_events: state.enabled_events, control: state.control };
    }
}

impl PowerState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<PowerState, StateError> {
        let state = PowerState { enabled_events: fields.u16()?, control: fields.u16()? };
        fields.finish()?;
        Ok(state)
    }
}
