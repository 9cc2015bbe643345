//! What may be chosen about a link.

use std::time::Duration;

use rhizomorph_proto::limits::{STRIPE_DEFAULT, STRIPE_MAX, STRIPE_MIN};

use crate::limits::DIAL_TIMEOUT;
use crate::runtime::RuntimeChoice;
use crate::transport::MtuPolicy;

/// Settings of one end of a link; the ends need not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// Packet sizes.
    pub mtu: MtuPolicy,
    /// Bytes of a stripe, brought into 16 KiB to 256 KiB.
    pub stripe_bytes: usize,
    /// Where tasks run.
    pub runtime: RuntimeChoice,
    /// What [`dial`](crate::dial) waits for the first path.
    pub dial_timeout: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            mtu: MtuPolicy::default(),
            stripe_bytes: STRIPE_DEFAULT,
            runtime: RuntimeChoice::default(),
            dial_timeout: DIAL_TIMEOUT,
        }
    }
}

impl LinkOptions {
    pub(crate) fn stripe_size(&self) -> u32 {
        u32::try_from(self.stripe_bytes.clamp(STRIPE_MIN, STRIPE_MAX)).unwrap_or(u32::MAX)
    }
}
