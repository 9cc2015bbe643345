//! What the socket device counts.

/// Counters since the machine was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VsockMetrics {
    /// Connections there are now, half-made ones included.
    pub connections: u64,
    /// Connections the guest asked for.
    pub from_guest: u64,
    /// Connections programs of the host asked for.
    pub from_host: u64,
    /// Payload bytes taken from the guest.
    pub tx_bytes: u64,
    /// Payload bytes put into guest buffers.
    pub rx_bytes: u64,
    /// Packets from the guest that no connection could be made of: cut short, or with foreign addresses.
    pub tx_dropped: u64,
    /// Times the port had no room.
    pub tx_full: u64,
    /// Refusals and aborts sent to the guest.
    pub resets: u64,
    /// Times the driver handed over something malformed.
    pub breakdowns: u64,
}
