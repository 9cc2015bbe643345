//! The PCI function of a virtio device: capabilities, common configuration, queues and interrupts.
//!
//! ```text
//!   BAR 0   0x0000 common configuration     0x3000 notifications, 4 bytes per queue
//!           0x1000 interrupt status         0x4000 MSI-X table
//!           0x2000 device configuration     0x5000 MSI-X pending bits
//! ```
//! Vector 0 tells of configuration changes, vector `1 + n` serves queue `n` unless the driver says otherwise.

mod doorbells;
mod layout;
mod persist;
mod queue;
mod registers;

use std::sync::Arc;

use kvm_ioctls::VmFd;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, ChainError, Memory};
use crate::irq::IrqRouter;
use crate::kvm::KvmError;
use crate::limits::QUEUE_SIZE;
use crate::pci::{ConfigSpace, MSIX_CAPABILITY_ID, Msix, msix_capability};
use doorbells::Doorbells;
pub(crate) use layout::BAR_BYTES;
use layout::{COMMON, DEVICE, ISR, NOTIFY, PENDING, TABLE, add_virtio_capabilities, identity, locate};
pub(crate) use persist::TransportState;
use queue::VirtQueue;

/// No vector.
const NO_VECTOR: u16 = 0xffff;

/// Interrupt status bits.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET.to_le_bytes()[0];
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK.to_le_bytes()[0];
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK.to_le_bytes()[0];

/// What a device type wants of its transport.
#[derive(Debug)]
pub(crate) struct Blueprint {
    /// virtio device type (1 is a network card).
    pub(crate) device_type: u16,
    /// PCI class.
    pub(crate) class: [u8; 3],
    /// Feature bits of the device type; those of the transport are added.
    pub(crate) features: u64,
    /// Number of queues.
    pub(crate) queues: u16,
}

/// What an access did that concerns the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The driver reset the device.
    Reset,
    /// The driver is ready.
    Ready,
    /// The driver notified a queue by an access that did not match its ioeventfd.
    Notify(u16),
    /// The driver wrote device configuration.
    Configure {
        /// Where.
        offset: usize,
    },
}

/// Transport state of one device. The device keeps it under its one lock.
#[derive(Debug)]
pub(crate) struct Transport {
    config: ConfigSpace,
    msix: Msix,
    doorbells: Doorbells,
    features: u64,
    registers: Registers,
    queues: Vec<VirtQueue>,
}

/// Plain registers of the common configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Registers {
    offered_select: u32,
    driver_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    isr: u8,
}

impl Transport {
    /// A device at power-on: its BAR 0 is nowhere yet.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        router: &Arc<IrqRouter>,
        blueprint: &Blueprint,
    ) -> Result<Transport, KvmError> {
        let mut config = ConfigSpace::new(identity(blueprint));
        config.add_bar0(BAR_BYTES);
        add_virtio_capabilities(&mut config, blueprint.queues);
        let vectors = blueprint.queues + 1;
        let at = config.add_capability(MSIX_CAPABILITY_ID, &msix_capability(vectors, TABLE, PENDING));
        let msix = Msix::new(Arc::clone(router), vectors, &mut config, at)?;
        let mut transport = Transport {
            config,
            msix,
            doorbells: Doorbells::new(Arc::clone(vm), blueprint.queues)?,
            features: blueprint.features
                | 1 << VIRTIO_F_VERSION_1
                | 1 << VIRTIO_RING_F_EVENT_IDX
                | 1 << VIRTIO_RING_F_INDIRECT_DESC,
            registers: Registers::default(),
            queues: (0..blueprint.queues).map(|_| VirtQueue::new()).collect(),
        };
        transport.reset();
        Ok(transport)
    }

    /// Puts BAR 0 at `base`: there is no firmware that would do it, and guests accept what they find.
    ///
    /// # Errors
    /// [`KvmError`] when notification addresses cannot be attached.
    pub(crate) fn place_bar(&mut self, base: u32) -> Result<(), KvmError> {
        self.config.place_bar0(base);
        self.follow_bar()
    }

    /// Gives back what it has of the machine, for good.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn retire(&mut self) -> Result<(), KvmError> {
        self.registers.status = 0;
        // A processor may be amid an access still.
        self.config.freeze();
        let doorbells = self.doorbells.move_to(0);
        self.msix.retire().and(doorbells)
    }

    /// The eventfd behind queue `index`'s notification address.
    pub(crate) fn doorbell(&self, index: u16) -> &EventFd {
        &self.doorbells.events[usize::from(index)]
    }

    /// Where BAR 0 answers: its base, or 0.
    pub(crate) fn bar_base(&self) -> u64 {
        self.config.bar0(BAR_BYTES).map_or(0, |range| range.start)
    }

    /// Features offered.
    pub(crate) fn features(&self) -> u64 {
        self.features
    }

    /// Whether the feature bit is offered and the driver has accepted it.
    pub(crate) fn negotiated(&self, bit: u32) -> bool {
        self.features & self.registers.driver_features & 1 << bit != 0
    }

    /// Whether the driver is ready and the device not broken.
    pub(crate) fn is_live(&self) -> bool {
        self.registers.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Takes the next chain of queue `index` into `chain`; false if there is none, or no live driver.
    ///
    /// # Errors
    /// [`ChainError`]: the caller calls [`Transport::break_down`].
    pub(crate) fn pop(&mut self, index: u16, memory: &Memory, chain: &mut Chain) -> Result<bool, ChainError> {
        self.queues[usize::from(index)].pop(memory, chain)
    }

    /// Gives the chain popped last back; it will be popped again.
    pub(crate) fn unpop(&mut self, index: u16) {
        self.queues[usize::from(index)].queue.go_to_previous_position();
    }

    /// Asks the driver to notify again; true if a chain came meanwhile.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the ring has left RAM.
    pub(crate) fn rearm(&mut self, index: u16, memory: &Memory) -> Result<bool, ChainError> {
        self.queues[usize::from(index)].rearm(memory)
    }

    /// Returns the chain that begins with descriptor `head` to the driver, with `written` bytes in it.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the ring has left RAM.
    pub(crate) fn complete(
        &mut self,
        index: u16,
        memory: &Memory,
        head: u16,
        written: u32,
    ) -> Result<(), ChainError> {
        let queue = &mut self.queues[usize::from(index)].queue;
        queue.add_used(memory, head, written).map_err(|_| ChainError::Ring)
    }

    /// Interrupts the driver for chains completed since the last call, if it wants to know.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the ring has left RAM.
    pub(crate) fn signal(&mut self, index: u16, memory: &Memory) -> Result<(), ChainError> {
        let queue = &mut self.queues[usize::from(index)];
        if queue.wants_interrupt(memory)? {
            self.registers.isr |= ISR_QUEUE;
            self.msix.raise(queue.vector);
        }
        Ok(())
    }

    /// Tells the driver that device configuration changed.
    pub(crate) fn signal_config(&mut self) {
        self.registers.generation = self.registers.generation.wrapping_add(1);
        self.registers.isr |= ISR_CONFIG;
        self.msix.raise(self.registers.config_vector);
    }

    /// Raises every vector once: after a restore, an interrupt that was under way at the cut would be lost, and
    /// drivers take one too many in their stride.
    pub(crate) fn signal_all(&mut self) {
        if !self.msix.is_enabled() || self.registers.status & DRIVER_OK == 0 {
            return;
        }
        for index in 0..self.queues.len() {
            let vector = self.queues[index].vector;
            self.msix.raise(vector);
        }
        self.msix.raise(self.registers.config_vector);
    }

    /// Stops serving a driver that handed over nonsense, and tells it so. True the first time.
    pub(crate) fn break_down(&mut self) -> bool {
        let first = self.registers.status & NEEDS_RESET == 0;
        if first {
            self.registers.status |= NEEDS_RESET;
            self.signal_config();
        }
        first
    }

    fn reset(&mut self) {
        self.registers = Registers { config_vector: NO_VECTOR, ..Registers::default() };
        self.queues.iter_mut().for_each(VirtQueue::reset);
    }

    /// Reads configuration space.
    pub(crate) fn config_read(&self, offset: usize, into: &mut [u8]) {
        self.config.read(offset, into);
    }

    /// Writes configuration space.
    pub(crate) fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        self.msix.config_written(&self.config);
        self.follow_bar_or_report();
    }

    fn follow_bar(&mut self) -> Result<(), KvmError> {
        self.doorbells.move_to(self.bar_base())
    }

    fn follow_bar_or_report(&mut self) {
        if let Err(error) = self.follow_bar() {
            tracing::error!(%error, "notifications of a moved device take the slow path");
        }
    }

    /// Reads BAR 0; `device` answers for the device configuration.
    pub(crate) fn bar_read(&mut self, offset: u64, into: &mut [u8], device: impl FnOnce(usize, &mut [u8])) {
        let Some((page, within)) = locate(offset) else { return };
        match page {
            COMMON => self.common_read(within, into),
            ISR => {
                into.fill(0);
                if let (0, Some(first)) = (within, into.first_mut()) {
                    *first = std::mem::take(&mut self.registers.isr);
                }
            }
            DEVICE => device(within, into),
            TABLE => self.msix.table_read(within, into),
            PENDING => self.msix.pending_read(within, into),
            _ => into.fill(0),
        }
    }

    /// Writes BAR 0.
    pub(crate) fn bar_write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> Option<Action> {
        let (page, within) = locate(offset)?;
        match page {
            COMMON => self.common_write(within, data, memory),
            NOTIFY => {
                let queue = u16::try_from(within).ok()? / 4;
                (usize::from(queue) < self.queues.len()).then_some(Action::Notify(queue))
            }
            TABLE => {
                self.msix.table_write(within, data);
                None
            }
            DEVICE => Some(Action::Configure { offset: within }),
            _ => None,
        }
    }
}

fn new_queue() -> Queue {
    Queue::new(QUEUE_SIZE).expect("the queue size is a power of two within bounds")
}
