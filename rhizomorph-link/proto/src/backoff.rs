//! Pauses between attempts: doubling from a first pause up to a ceiling.

use std::time::Duration;

use crate::limits::{REDIAL_MAX, REDIAL_MIN};

/// The pause before the next attempt, doubling until told that one succeeded.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: REDIAL_MIN }
    }
}

impl Backoff {
    /// The pause to make now; the following one is twice as long, up to [`REDIAL_MAX`].
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(REDIAL_MAX);
        pause
    }

    /// An attempt succeeded: start again from [`REDIAL_MIN`].
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_ceiling_and_start_over() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..7).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.pause(), REDIAL_MIN);
    }
}
