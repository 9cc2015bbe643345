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
    /// Pages that were kept although the guest does not need them: it fills free pages with a pattern, the request was
    /// too long, RAM is still being filled from a snapshot, or the host refused.
    pub kept_pages: u64,
    /// Calls to the host's kernel that all of this took: one per run of neighbouring pages.
    pub runs: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
