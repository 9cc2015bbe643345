//! State of a card. Frames not yet in guest buffers are no part of it: they have not happened to the guest.

use super::device::Net;
use crate::state::{Fields, Payload, StateError};

/// The card's own part of its section.
#[derive(Debug)]
pub(crate) struct NetSaved {
    announcing: bool,
}

impl Net {
    pub(super) fn save_own(&self, out: &mut Payload<'_>) {
        out.bool(self.announcing);
    }

    pub(super) fn restore_own(&mut self, saved: &NetSaved) {
        self.announcing = saved.announcing;
    }
}

impl NetSaved {
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<NetSaved, StateError> {
        Ok(NetSaved { announcing: fields.bool("announcing")? })
    }
}
