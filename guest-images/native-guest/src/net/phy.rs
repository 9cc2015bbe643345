//! The card as smoltcp sees it.

use super::device::{MAX_FRAME_BYTES, NetDevice, QUEUE_SIZE, TxRing};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// A frame received.
pub(crate) struct Received<'a>(&'a mut [u8]);

/// Leave to send one frame.
pub(crate) struct Room<'a>(&'a mut TxRing);

impl RxToken for Received<'_> {
    fn consume<R, F>(self, f: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        f(self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        self.0.send(len, f)
    }
}

impl Device for NetDevice {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Room<'_>)> {
        // A received frame may have to be answered: without room to send, receiving waits.
        let Self { rx, tx, .. } = self;
        if !tx.has_room() {
            tx.reclaim();
        }
        if !tx.has_room() {
            return None;
        }
        Some((Received(rx.receive()?), Room(tx)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_>> {
        if !self.tx.has_room() {
            self.tx.reclaim();
        }
        self.tx.has_room().then_some(Room(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME_BYTES;
        capabilities.max_burst_size = Some(QUEUE_SIZE);
        capabilities
    }
}
