//! The queues of the socket device.

use super::packet::{HEADER_BYTES, Packet};
use crate::virtio::{Bus, DeviceError, Function, Inbox, Outbox};
use alloc::vec::Vec;
use virtio_drivers::transport::{DeviceType, Transport};

const QUEUE_RX: u16 = 0;
const QUEUE_TX: u16 = 1;
const QUEUE_EVENT: u16 = 2;

/// Entries of the queues for packets, and for events.
const PACKETS: usize = 32;
const EVENTS: usize = 4;

/// Most data of one packet in either direction.
pub(super) const DATA_BYTES: usize = 4096 - HEADER_BYTES;

/// Every connection is gone: the guest was restored elsewhere.
const EVENT_TRANSPORT_RESET: u32 = 0;

/// The device.
pub(super) struct VsockDevice {
    function: Function,
    cid: u64,
    rx: Inbox<PACKETS>,
    tx: Outbox<PACKETS>,
    events: Inbox<EVENTS>,
}

impl VsockDevice {
    pub(super) fn new(bus: &mut Bus) -> Result<Self, DeviceError> {
        let mut function = Function::open(bus, DeviceType::Socket, 1)?;
        function.negotiate(0, 0)?;
        let rx = Inbox::new(&mut function, QUEUE_RX, HEADER_BYTES + DATA_BYTES)?;
        let tx = Outbox::new(&mut function, QUEUE_TX)?;
        let events = Inbox::new(&mut function, QUEUE_EVENT, 4)?;
        function.finish_init();
        let mut device = Self { function, cid: 0, rx, tx, events };
        device.read_cid();
        device.rx.refill();
        device.events.refill();
        Ok(device)
    }

    fn read_cid(&mut self) {
        self.cid = self.function.read_config_u64(0).unwrap_or(0);
    }

    /// Whether the connections are gone since the last call.
    pub(super) fn was_reset(&mut self) -> bool {
        let reset = |bytes: &[u8]| *bytes == EVENT_TRANSPORT_RESET.to_le_bytes();
        let Some(reset) = self.events.receive(reset) else { return false };
        self.events.refill();
        if reset {
            self.read_cid();
        }
        reset
    }

    /// The next packet for a stream, with its data.
    pub(super) fn receive(&mut self) -> Option<(Packet, Vec<u8>)> {
        loop {
            let packet =
                self.rx.receive(|bytes| Packet::decode(bytes).map(|(p, data)| (p, data.to_vec())))?;
            self.rx.refill();
            if packet.is_some() {
                return packet;
            }
        }
    }

    /// Whether a packet can be sent.
    pub(super) fn has_room(&mut self) -> bool {
        self.tx.reclaim();
        self.tx.has_room()
    }

    /// Sends a packet. Only to be called while there is room.
    pub(super) fn send(&mut self, packet: Packet, data: &[u8]) {
        self.tx.send(packet.encode(self.cid, data));
    }

    /// Switches interrupts on for a sleep. Whether sleeping is right.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        self.rx.prepare_sleep() & self.events.prepare_sleep() & self.tx.prepare_sleep()
    }

    /// Switches interrupts off again.
    pub(super) fn end_sleep(&mut self) {
        self.rx.end_sleep();
        self.events.end_sleep();
        self.tx.end_sleep();
    }
}
