//! State of the registers.

use super::device::Hotplug;
use crate::state::{Fields, Payload, StateError};

/// The device as read from a state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HotplugState(Hotplug);

impl Hotplug {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.u32(self.up);
        out.u32(self.down);
        out.u8(self.status);
        out.u8(self.enabled);
    }

    /// Takes a state.
    pub(crate) fn restore(&mut self, state: HotplugState) {
        *self = state.0;
    }
}

impl HotplugState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<HotplugState, StateError> {
        let (up, down) = (fields.u32()?, fields.u32()?);
        let (status, enabled) = (fields.u8()?, fields.u8()?);
        fields.finish()?;
        Ok(HotplugState(Hotplug { up, down, status, enabled }))
    }
}
