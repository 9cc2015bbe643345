//! State of a card. Frames not yet in guest buffers are no part of it: they have not happened to the guest.

use super::device::{Nic, QUEUES};
use crate::state::{Fields, Payload, StateError};
use crate::virtio::TransportState;

/// The card as read from a state.
#[derive(Debug)]
pub(crate) struct NicState {
    transport: TransportState,
    announcing: bool,
}

impl Nic {
    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        let inner = self.lock();
        inner.transport.save(out);
        out.bool(inner.announcing);
    }

    /// Takes a state; the machine is paused.
    pub(crate) fn restore(&self, state: &NicState) {
        let mut inner = self.lock();
        inner.transport.restore(&state.transport);
        inner.announcing = state.announcing;
        self.follow_window(&inner);
    }
}

impl NicState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<NicState, StateError> {
        let transport = TransportState::decode(&mut fields, QUEUES)?;
        let announcing = fields.bool("announcing")?;
        fields.finish()?;
        Ok(NicState { transport, announcing })
    }
}
