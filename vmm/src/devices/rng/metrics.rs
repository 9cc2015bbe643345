//! What the entropy source counts.

/// Counters of the entropy source since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RngMetrics {
    /// Buffers filled.
    pub requests: u64,
    /// Random bytes put into them.
    pub bytes: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
