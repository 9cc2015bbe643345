//! Entropy source: virtio-rng (device type 4), one queue of buffers to fill.
//!
//! What it gives comes from the host's `getrandom`. A replica does not ask its own host for the same bytes: it is given
//! the pages they were written to, which are marked like those of any device. So there is nothing to save beside the
//! queue, and nothing to hold back.

mod device;
mod metrics;

pub(crate) use device::RngDevice;
pub use metrics::RngMetrics;
