//! What a card counts.

use std::sync::atomic::{AtomicU64, Ordering};

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

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) tx_frames: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
    pub(super) tx_dropped: AtomicU64,
    pub(super) tx_full: AtomicU64,
    pub(super) rx_frames: AtomicU64,
    pub(super) rx_bytes: AtomicU64,
    pub(super) rx_dropped: AtomicU64,
    pub(super) rx_discarded: AtomicU64,
    pub(super) breakdowns: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn snapshot(&self) -> NetMetrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetMetrics {
            tx_frames: get(&self.tx_frames),
            tx_bytes: get(&self.tx_bytes),
            tx_dropped: get(&self.tx_dropped),
            tx_full: get(&self.tx_full),
            rx_frames: get(&self.rx_frames),
            rx_bytes: get(&self.rx_bytes),
            rx_dropped: get(&self.rx_dropped),
            rx_discarded: get(&self.rx_discarded),
            breakdowns: get(&self.breakdowns),
        }
    }
}
