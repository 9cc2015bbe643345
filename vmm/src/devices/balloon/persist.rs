//! State of the balloon. Statistics are no part of it: they are asked for again.

use super::device::{Balloon, Registers};
use crate::state::{Fields, Payload, StateError};

/// The balloon's own part of its section.
#[derive(Debug)]
pub(crate) struct BalloonSaved {
    wanted: u32,
    registers: Registers,
}

impl Balloon {
    pub(super) fn save_own(&self, out: &mut Payload<'_>) {
        let Registers { target, actual, poison } = self.registers;
        [self.wanted, target, actual, poison].into_iter().for_each(|field| out.u32(field));
    }

    pub(super) fn restore_own(&mut self, saved: &BalloonSaved) {
        (self.wanted, self.registers) = (saved.wanted, saved.registers);
        self.forget_stats();
    }
}

impl BalloonSaved {
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<BalloonSaved, StateError> {
        Ok(BalloonSaved {
            wanted: fields.u32()?,
            registers: Registers { target: fields.u32()?, actual: fields.u32()?, poison: fields.u32()? },
        })
    }
}
