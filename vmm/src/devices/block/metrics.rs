//! What a disk counts.

/// Counters of one disk since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockMetrics {
    /// Reads done.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Discards and requests to write zeroes done.
    pub discards: u64,
    /// Requests the host or the image refused, or the guest got wrong.
    pub failed: u64,
    /// Times the rate limit made the guest wait.
    pub throttled: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
