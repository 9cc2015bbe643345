//! Common configuration: the registers through which a driver sets the device up.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::layout::COMMON_BYTES;
use super::{Action, DRIVER_OK, FEATURES_OK, NEEDS_RESET, NO_VECTOR, Transport, VirtQueue};
use crate::virtio::chain::Memory;

impl Transport {
    fn selected(&self) -> Option<&VirtQueue> {
        self.queues.get(usize::from(self.registers.queue_select))
    }

    pub(super) fn common_read(&self, offset: usize, into: &mut [u8]) {
        let mut image = [0; COMMON_BYTES as usize];
        self.common_image(&mut image);
        for (byte, at) in into.iter_mut().zip(offset..) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// The common configuration as bytes: any width of access then reads right.
    fn common_image(&self, image: &mut [u8]) {
        let registers = &self.registers;
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &registers.offered_select.to_le_bytes());
        put(0x04, &half(self.features, registers.offered_select).to_le_bytes());
        put(0x08, &registers.driver_select.to_le_bytes());
        put(0x0c, &half(registers.driver_features, registers.driver_select).to_le_bytes());
        put(0x10, &registers.config_vector.to_le_bytes());
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(0).to_le_bytes());
        put(0x14, &[registers.status, registers.generation]);
        put(0x16, &registers.queue_select.to_le_bytes());
        if let Some(VirtQueue { queue, vector, .. }) = self.selected() {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready()).to_le_bytes());
            put(0x1e, &registers.queue_select.to_le_bytes());
            put(0x20, &queue.desc_table().to_le_bytes());
            put(0x28, &queue.avail_ring().to_le_bytes());
            put(0x30, &queue.used_ring().to_le_bytes());
        }
    }

    pub(super) fn common_write(&mut self, offset: usize, data: &[u8], memory: &Memory) -> Option<Action> {
        if let (0x20..0x38, Ok(whole)) = (offset, <[u8; 8]>::try_from(data)) {
            let [low, high] = [&whole[..4], &whole[4..]];
            self.common_write(offset, low, memory);
            return self.common_write(offset + 4, high, memory);
        }
        let value = data.iter().rev().take(4).fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        let [short, byte] = [value & 0xffff, value & 0xff];
        let (short, byte) = (u16::try_from(short).unwrap_or(0), u8::try_from(byte).unwrap_or(0));
        match offset {
            0x00 => self.registers.offered_select = value,
            0x08 => self.registers.driver_select = value,
            0x0c => self.accept_features(value),
            0x10 => self.registers.config_vector = self.existing_vector(short),
            0x14 => return self.set_status(byte),
            0x16 => self.registers.queue_select = short,
            0x18 | 0x1a | 0x1c | 0x20..0x38 => self.queue_write(offset, value, short, memory),
            _ => {}
        }
        None
    }

    fn accept_features(&mut self, value: u32) {
        if self.registers.status & FEATURES_OK == 0 {
            let registers = &mut self.registers;
            match registers.driver_select {
                0 => registers.driver_features = registers.driver_features & !0xffff_ffff | u64::from(value),
                1 => {
                    registers.driver_features =
                        registers.driver_features & 0xffff_ffff | u64::from(value) << 32;
                }
                _ => {}
            }
        }
    }

    fn existing_vector(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() { vector } else { NO_VECTOR }
    }

    fn queue_write(&mut self, offset: usize, value: u32, short: u16, memory: &Memory) {
        let vector = self.existing_vector(short);
        let event_idx = self.negotiated(VIRTIO_RING_F_EVENT_IDX);
        let Some(VirtQueue { queue, vector: queue_vector, .. }) =
            self.queues.get_mut(usize::from(self.registers.queue_select))
        else {
            return;
        };
        match offset {
            0x1a => *queue_vector = vector,
            // What follows describes the ring, which must hold still while it is in use.
            _ if queue.ready() => {}
            0x18 => queue.set_size(short),
            0x1c if short == 1 => {
                queue.set_event_idx(event_idx);
                queue.set_ready(true);
                // A ring outside RAM: the queue stays off, which the driver sees when it reads back.
                if !queue.is_valid(memory) {
                    queue.set_ready(false);
                }
            }
            0x20 => queue.set_desc_table_address(Some(value), None),
            0x24 => queue.set_desc_table_address(None, Some(value)),
            0x28 => queue.set_avail_ring_address(Some(value), None),
            0x2c => queue.set_avail_ring_address(None, Some(value)),
            0x30 => queue.set_used_ring_address(Some(value), None),
            0x34 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, status: u8) -> Option<Action> {
        if status == 0 {
            self.reset();
            return Some(Action::Reset);
        }
        let before = self.registers.status;
        let mut after = before & NEEDS_RESET | status & !NEEDS_RESET;
        let agreed =
            self.registers.driver_features & !self.features == 0 && self.negotiated(VIRTIO_F_VERSION_1);
        if !agreed {
            after &= !FEATURES_OK;
        }
        self.registers.status = after;
        (after & !before & DRIVER_OK != 0).then_some(Action::Ready)
    }
}

/// The half of a 64-bit feature set that a selector names.
fn half(features: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(shifted & 0xffff_ffff).unwrap_or(0)
}
