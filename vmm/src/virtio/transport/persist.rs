//! The transport's part of a device's state.

use virtio_queue::{Queue, QueueState};

use super::{FEATURES_OK, Registers, Transport, VirtQueue, new_queue};
use crate::limits::QUEUE_SIZE;
use crate::pci::{CONFIG_BYTES, ConfigSpace, Msix, MsixState};
use crate::state::{Fields, Payload, StateError};

impl Transport {
    /// Writes the transport's part of a device section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        self.config.save(out);
        self.msix.save(out);
        let registers = &self.registers;
        out.u32(registers.offered_select);
        out.u32(registers.driver_select);
        out.u64(registers.driver_features);
        out.u16(registers.config_vector);
        out.u8(registers.status);
        out.u8(registers.generation);
        out.u16(registers.queue_select);
        out.u8(registers.isr);
        self.queues.iter().for_each(|queue| queue.save(out));
    }

    /// Takes a state; the caller signals all vectors when the guest is about to run.
    pub(crate) fn restore(&mut self, state: &TransportState) {
        self.registers = state.registers;
        for (mine, theirs) in self.queues.iter_mut().zip(&state.queues) {
            // Decoding has already built this queue once.
            let queue = Queue::try_from(theirs.0).unwrap_or_else(|_| new_queue());
            *mine = VirtQueue::of(queue, theirs.1);
        }
        self.config.restore(&state.config);
        self.msix.restore(&state.msix, &self.config);
        self.follow_bar_or_report();
    }
}

/// The transport's part of a device section, as read.
#[derive(Debug)]
pub(crate) struct TransportState {
    config: [u8; CONFIG_BYTES],
    msix: MsixState,
    registers: Registers,
    queues: Vec<(QueueState, u16)>,
}

impl TransportState {
    /// Reads the part for a device with `queues` queues that offers `features`.
    ///
    /// # Errors
    /// [`StateError`] naming the field.
    pub(crate) fn decode(
        fields: &mut Fields<'_>,
        queues: u16,
        features: u64,
    ) -> Result<TransportState, StateError> {
        let state = Self::decode_any(fields, queues)?;
        let Registers { status, driver_features, .. } = state.registers;
        if status & FEATURES_OK != 0 && driver_features & !features != 0 {
            let reason = "the device here does not offer all of them";
            return Err(fields.invalid("features agreed on", driver_features, reason));
        }
        Ok(state)
    }

    fn decode_any(fields: &mut Fields<'_>, queues: u16) -> Result<TransportState, StateError> {
        Ok(TransportState {
            config: ConfigSpace::decode(fields)?,
            msix: Msix::decode(fields, queues + 1)?,
            registers: Registers {
                offered_select: fields.u32()?,
                driver_select: fields.u32()?,
                driver_features: fields.u64()?,
                config_vector: fields.u16()?,
                status: fields.u8()?,
                generation: fields.u8()?,
                queue_select: fields.u16()?,
                isr: fields.u8()?,
            },
            queues: (0..queues).map(|_| VirtQueue::decode(fields)).collect::<Result<_, _>>()?,
        })
    }
}

impl VirtQueue {
    fn save(&self, out: &mut Payload<'_>) {
        let state = self.queue.state();
        out.u16(state.size);
        out.u16(state.next_avail);
        out.u16(state.next_used);
        out.bool(state.event_idx_enabled);
        out.bool(state.ready);
        out.u64(state.desc_table);
        out.u64(state.avail_ring);
        out.u64(state.used_ring);
        out.u16(self.vector);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<(QueueState, u16), StateError> {
        let state = QueueState {
            max_size: QUEUE_SIZE,
            size: fields.u16()?,
            next_avail: fields.u16()?,
            next_used: fields.u16()?,
            event_idx_enabled: fields.bool("event index in use")?,
            ready: fields.bool("queue in use")?,
            desc_table: fields.u64()?,
            avail_ring: fields.u64()?,
            used_ring: fields.u64()?,
        };
        if Queue::try_from(state).is_err() {
            let reason = "no ring of a virtio queue has this size or alignment";
            return Err(fields.invalid("queue size", u64::from(state.size), reason));
        }
        Ok((state, fields.u16()?))
    }
}
