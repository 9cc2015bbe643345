//! State of a card. Frames not yet in guest buffers are no part of it: they have not happened to the guest.

use super::device::Net;
use crate::limits::NIC_PAIRS_MAX;
use crate::state::{Fields, Payload, StateError};

/// The card's own part of its section.
#[derive(Debug)]
pub(crate) struct NetSaved {
    announcing: bool,
    /// Pairs of queues the driver uses.
    pairs: u16,
}

impl Net {
    pub(super) fn save_own(&self, out: &mut Payload<'_>) {
        out.bool(self.announcing);
        out.u16(self.pairs);
    }

    pub(super) fn restore_own(&mut self, saved: &NetSaved) {
        self.announcing = saved.announcing;
        // A state of a card with more queues has been refused for its length.
        self.pairs = saved.pairs.min(self.attached.tap.pairs());
    }
}

impl NetSaved {
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<NetSaved, StateError> {
        let announcing = fields.bool("announcing")?;
        match fields.u16()? {
            pairs @ 1..=NIC_PAIRS_MAX => Ok(NetSaved { announcing, pairs }),
            pairs => Err(fields.invalid("pairs of queues in use", u64::from(pairs), "no card has so many")),
        }
    }
}
