//! What the console counts.

/// Counters of all ports since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsoleMetrics {
    /// Bytes taken from the guest.
    pub tx_bytes: u64,
    /// Bytes of chains longer than any driver makes, dropped.
    pub tx_dropped: u64,
    /// Times a port's way out had no room.
    pub tx_full: u64,
    /// Bytes put into guest buffers.
    pub rx_bytes: u64,
    /// Control messages of the driver's that say nothing we know.
    pub control_dropped: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
