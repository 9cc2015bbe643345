//! What a card counts.

/// Counters of one card since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetMetrics {
    /// Frames taken from the guest and by the port.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames from the guest that are too short or too long to be Ethernet.
    pub tx_dropped: u64,
    /// Times the port had no room.
    pub tx_full: u64,
    /// Frames put into guest buffers.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames for the guest that had no place: no driver, too long, backlog full, buffer too small.
    pub rx_dropped: u64,
    /// Frames drained from the tap while reception was off.
    pub rx_discarded: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
