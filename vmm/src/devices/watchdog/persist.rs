//! State of the watchdog: what is left of its countdown.

use std::time::Duration;

use super::device::{Countdown, Watchdog};
use crate::state::{Fields, Payload, StateError};

/// Longest countdown a guest can ask for: 65,535 ticks, in milliseconds.
const LEFT_MS_MAX: u64 = 6_553_500;

/// The device as read from a state.
#[derive(Debug)]
pub(crate) struct WatchdogState {
    left: Option<Duration>,
}

impl Watchdog {
    /// Writes the section; the machine is paused.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        let left = match self.countdown {
            Countdown::Left(left) => Some(left),
            Countdown::Off | Countdown::Until(_) => None,
        };
        out.bool(left.is_some());
        out.u64(left.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(LEFT_MS_MAX)));
    }

    /// Takes a state; the machine is paused.
    pub(crate) fn restore(&mut self, state: &WatchdogState) {
        self.set(state.left.map_or(Countdown::Off, Countdown::Left));
    }
}

impl WatchdogState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<WatchdogState, StateError> {
        let armed = fields.bool("armed")?;
        let left_ms = fields.u64()?;
        if left_ms > LEFT_MS_MAX {
            return Err(fields.invalid("milliseconds left", left_ms, "no guest can ask for that long"));
        }
        fields.finish()?;
        Ok(WatchdogState { left: armed.then(|| Duration::from_millis(left_ms)) })
    }
}
