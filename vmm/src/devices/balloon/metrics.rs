//! What the balloon counts.

/// Counters of the balloon since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonMetrics {
    /// Pages put into the balloon.
    pub inflated_pages: u64,
    /// Pages taken out of it.
    pub deflated_pages: u64,
    /// Free pages reported and given back to the host.
    pub reported_pages: u64,
    /// Free pages reported that were kept: the guest fills them with a pattern, the request was too long, or the host
    /// refused.
    pub kept_pages: u64,
    /// Calls to the host's kernel that all of this took: one per run of neighbouring pages.
    pub runs: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
