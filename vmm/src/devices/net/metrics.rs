//! What a card counts.

/// Counters of one card since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetMetrics {
    /// Frames taken from the guest and by the port.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames from the guest that are too short or too long to be Ethernet, or ask for what was not agreed on.
    pub tx_dropped: u64,
    /// Frames from the guest, of those taken, that were left to be cut to size.
    pub tx_large: u64,
    /// Frames that the tap did not take, from the guest or on its behalf: down, full, or refused by the kernel.
    pub tx_lost: u64,
    /// Times the rate limit made the guest wait.
    pub tx_throttled: u64,
    /// Times the port had no room.
    pub tx_full: u64,
    /// Frames put into guest buffers.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames, of those put into guest buffers, that were not cut to size.
    pub rx_large: u64,
    /// Frames for the guest that had no place: no driver, too long, backlog full, buffer too small; or that leave to be done
    /// what was not agreed on.
    pub rx_dropped: u64,
    /// Times the rate limit kept frames waiting in the tap.
    pub rx_throttled: u64,
    /// Frames drained from the tap while reception was off.
    pub rx_discarded: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
