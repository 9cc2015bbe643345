//! The PCI function of a virtio device: capabilities, common configuration, queues and interrupts.
//!
//! ```text
//!   BAR 0   0x0000 common configuration     0x3000 notifications, 4 bytes per queue
//!           0x1000 interrupt status         0x4000 MSI-X table
//!           0x2000 device configuration     0x5000 MSI-X pending bits
//! ```
//! Vector 0 tells of configuration changes, vector `1 + n` serves queue `n` unless the driver says otherwise.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, ChainError, Memory};
use crate::irq::{self, IrqRouter};
use crate::kvm::{KvmError, refused};
use crate::limits::QUEUE_SIZE;
use crate::pci::{ConfigSpace, Identity, MSIX_CAPABILITY_ID, Msix, msix_capability};
use crate::state::{Fields, Payload, StateError};

/// Bytes of BAR 0.
pub(crate) const BAR_BYTES: u32 = 0x8000;

const COMMON: u32 = 0x0000;
const COMMON_BYTES: u32 = 0x40;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const NOTIFY_STRIDE: u32 = 4;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
const PAGE: u32 = 0x1000;

const VENDOR_CAPABILITY_ID: u8 = 0x09;
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
    /// Where BAR 0 is at power-on.
    pub(crate) bar: u32,
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

#[derive(Debug)]
struct VirtQueue {
    queue: Queue,
    vector: u16,
}

impl Transport {
    /// A device at power-on.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        router: &Arc<IrqRouter>,
        blueprint: &Blueprint,
    ) -> Result<Transport, KvmError> {
        let mut config = ConfigSpace::new(identity(blueprint));
        config.add_bar0(blueprint.bar, BAR_BYTES);
        add_virtio_capabilities(&mut config, blueprint.queues);
        let vectors = blueprint.queues + 1;
        let at = config.add_capability(MSIX_CAPABILITY_ID, &msix_capability(vectors, TABLE, PENDING));
        let msix = Msix::new(Arc::clone(router), vectors, &mut config, at)?;
        let mut transport = Transport {
            config,
            msix,
            doorbells: Doorbells::new(Arc::clone(vm), blueprint.queues)?,
            features: blueprint.features | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX,
            registers: Registers::default(),
            queues: (0..blueprint.queues).map(|_| VirtQueue::new()).collect(),
        };
        transport.reset();
        transport.follow_bar()?;
        Ok(transport)
    }

    /// The eventfd behind queue `index`'s notification address.
    pub(crate) fn doorbell(&self, index: u16) -> &EventFd {
        &self.doorbells.events[usize::from(index)]
    }

    /// Where BAR 0 answers: its base, or 0.
    pub(crate) fn bar_base(&self) -> u64 {
        self.config.bar0(BAR_BYTES).map_or(0, |range| range.start)
    }

    /// Whether the driver has negotiated the feature bit.
    pub(crate) fn negotiated(&self, bit: u32) -> bool {
        self.registers.driver_features >> bit & 1 == 1
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
        let queue = &mut self.queues[usize::from(index)].queue;
        if !queue.ready() {
            return Ok(false);
        }
        let mut available = queue.iter(memory).map_err(|_| ChainError::Ring)?;
        match available.next() {
            Some(descriptors) => chain.walk(descriptors).map(|()| true),
            None => Ok(false),
        }
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
        let queue = &mut self.queues[usize::from(index)].queue;
        if !queue.ready() {
            return Ok(false);
        }
        queue.enable_notification(memory).map_err(|_| ChainError::Ring)
    }

    /// Returns a chain to the driver, with `written` bytes in it.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the ring has left RAM.
    pub(crate) fn complete(
        &mut self,
        index: u16,
        memory: &Memory,
        chain: &Chain,
        written: u32,
    ) -> Result<(), ChainError> {
        let queue = &mut self.queues[usize::from(index)].queue;
        queue.add_used(memory, chain.head(), written).map_err(|_| ChainError::Ring)
    }

    /// Interrupts the driver for chains completed since the last call, if it wants to know.
    ///
    /// # Errors
    /// [`ChainError::Ring`] when the ring has left RAM.
    pub(crate) fn signal(&mut self, index: u16, memory: &Memory) -> Result<(), ChainError> {
        let VirtQueue { queue, vector } = &mut self.queues[usize::from(index)];
        if queue.needs_notification(memory).map_err(|_| ChainError::Ring)? {
            self.registers.isr |= ISR_QUEUE;
            self.msix.raise(*vector);
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
            _ => None,
        }
    }

    fn selected(&self) -> Option<&VirtQueue> {
        self.queues.get(usize::from(self.registers.queue_select))
    }

    fn common_read(&self, offset: usize, into: &mut [u8]) {
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
        if let Some(VirtQueue { queue, vector }) = self.selected() {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready()).to_le_bytes());
            put(0x1e, &registers.queue_select.to_le_bytes());
            put(0x20, &queue.desc_table().to_le_bytes());
            put(0x28, &queue.avail_ring().to_le_bytes());
            put(0x30, &queue.used_ring().to_le_bytes());
        }
    }

    fn common_write(&mut self, offset: usize, data: &[u8], memory: &Memory) -> Option<Action> {
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
            0x14 => return self.set_status(byte, memory),
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
        let Some(VirtQueue { queue, vector: queue_vector }) =
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

    fn set_status(&mut self, status: u8, memory: &Memory) -> Option<Action> {
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
        let _ = memory;
        (after & !before & DRIVER_OK != 0).then_some(Action::Ready)
    }

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
            mine.vector = theirs.1;
            // Decoding has already built this queue once.
            mine.queue = Queue::try_from(theirs.0).unwrap_or_else(|_| new_queue());
        }
        self.config.restore(&state.config);
        self.msix.restore(&state.msix, &self.config);
        self.follow_bar_or_report();
    }
}

/// The transport's part of a device section, as read.
#[derive(Debug)]
pub(crate) struct TransportState {
    config: [u8; crate::pci::CONFIG_BYTES],
    msix: crate::pci::MsixState,
    registers: Registers,
    queues: Vec<(QueueState, u16)>,
}

impl TransportState {
    /// Reads the part for a device with `queues` queues.
    ///
    /// # Errors
    /// [`StateError`] naming the field.
    pub(crate) fn decode(fields: &mut Fields<'_>, queues: u16) -> Result<TransportState, StateError> {
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
    fn new() -> VirtQueue {
        VirtQueue { queue: new_queue(), vector: NO_VECTOR }
    }

    fn reset(&mut self) {
        self.queue.reset();
        self.vector = NO_VECTOR;
    }

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

/// The eventfds that KVM signals when the guest writes a queue's notification address.
#[derive(Debug)]
struct Doorbells {
    vm: Arc<VmFd>,
    /// Base of BAR 0 they are registered for, or 0.
    base: u64,
    events: Vec<EventFd>,
}

impl Doorbells {
    fn new(vm: Arc<VmFd>, queues: u16) -> Result<Doorbells, KvmError> {
        let events = (0..queues).map(|_| irq::eventfd()).collect::<Result<_, _>>();
        Ok(Doorbells { vm, base: 0, events: events.map_err(refused("make a notification eventfd"))? })
    }

    fn move_to(&mut self, base: u64) -> Result<(), KvmError> {
        if base == self.base {
            return Ok(());
        }
        let address =
            |base: u64, queue: u32| IoEventAddress::Mmio(base + u64::from(NOTIFY + NOTIFY_STRIDE * queue));
        if self.base != 0 {
            for (event, queue) in self.events.iter().zip(0..) {
                self.vm
                    .unregister_ioevent(event, &address(self.base, queue), NoDatamatch)
                    .map_err(refused("detach a notification address"))?;
            }
            self.base = 0;
        }
        if base != 0 {
            for (event, queue) in self.events.iter().zip(0..) {
                self.vm
                    .register_ioevent(event, &address(base, queue), NoDatamatch)
                    .map_err(refused("attach a notification address"))?;
            }
            self.base = base;
        }
        Ok(())
    }
}

fn new_queue() -> Queue {
    Queue::new(QUEUE_SIZE).expect("the queue size is a power of two within bounds")
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

/// Page and offset within it of an offset into BAR 0.
fn locate(offset: u64) -> Option<(u32, usize)> {
    let offset = u32::try_from(offset).ok().filter(|o| *o < BAR_BYTES)?;
    Some((offset & !(PAGE - 1), usize::try_from(offset & (PAGE - 1)).ok()?))
}

fn identity(blueprint: &Blueprint) -> Identity {
    Identity {
        vendor: 0x1af4,
        device: 0x1040 + blueprint.device_type,
        revision: 1,
        class: blueprint.class,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1040 + blueprint.device_type,
    }
}

fn add_virtio_capabilities(config: &mut ConfigSpace, queues: u16) {
    let capability = |kind: u8, offset: u32, length: u32| {
        let mut body = [0; 14];
        body[0] = 16;
        body[1] = kind;
        body[6..10].copy_from_slice(&offset.to_le_bytes());
        body[10..14].copy_from_slice(&length.to_le_bytes());
        body
    };
    config.add_capability(VENDOR_CAPABILITY_ID, &capability(1, COMMON, COMMON_BYTES));
    let mut notify = [0; 18];
    notify[..14].copy_from_slice(&capability(2, NOTIFY, NOTIFY_STRIDE * u32::from(queues)));
    notify[0] = 20;
    notify[14..].copy_from_slice(&NOTIFY_STRIDE.to_le_bytes());
    config.add_capability(VENDOR_CAPABILITY_ID, &notify);
    config.add_capability(VENDOR_CAPABILITY_ID, &capability(3, ISR, 4));
    config.add_capability(VENDOR_CAPABILITY_ID, &capability(4, DEVICE, PAGE));
}
