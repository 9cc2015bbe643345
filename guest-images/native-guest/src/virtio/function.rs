//! One virtio device: virtio-drivers' transport, with interrupts by MSI-X and cheap doorbells.

use super::caps::{Doorbell, Registers};
use super::hal::IdentityMap;
use super::msix;
use super::pci::Bus;
use alloc::vec::Vec;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::DeviceFunction;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result as VirtioResult};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const FEATURE_INDIRECT: u64 = 1 << 28;
const FEATURE_EVENT_INDEX: u64 = 1 << 29;
const FEATURE_VERSION_1: u64 = 1 << 32;

/// What no driver here may accept. Event indices: virtio-drivers compares them without wrap-around, which loses
/// doorbells when buffers are added in batches. Indirect descriptors: each request would cost an allocation.
const UNWANTED: u64 = FEATURE_EVENT_INDEX | FEATURE_INDIRECT;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// Nothing on the bus.
    #[error("no virtio {0:?} device on PCI bus 0; give the machine one")]
    NotFound(DeviceType),
    /// BARs or capabilities make no sense.
    #[error("the {0:?} device's PCI registers cannot be used: {1}")]
    Pci(DeviceType, &'static str),
    /// The device does not do what virtio 1 demands.
    #[error("the {0:?} device refused its set-up: {1}")]
    Device(DeviceType, &'static str),
    /// A driver of virtio-drivers says why.
    #[error("the {0:?} device failed: {1}")]
    Driver(DeviceType, virtio_drivers::Error),
}

/// A queue in this kernel's memory.
pub(crate) type Queue<const SIZE: usize> = VirtQueue<IdentityMap, SIZE>;

/// An open device. A transport to virtio-drivers, so that its drivers get interrupts too.
pub(crate) struct Function {
    kind: DeviceType,
    transport: PciTransport,
    registers: Registers,
    table_entries: u16,
    doorbells: Vec<Doorbell>,
}

impl Function {
    /// Opens the first device of a kind, with up to `vectors` interrupt vectors for its queues in turn; the first is
    /// for changes of its configuration as well.
    pub(crate) fn open(bus: &mut Bus, kind: DeviceType, vectors: u16) -> Result<Self, DeviceError> {
        let function = bus.find(kind).ok_or(DeviceError::NotFound(kind))?;
        Self::open_at(bus, function, kind, vectors)
    }

    /// As [`open`](Self::open), the device at an address.
    pub(crate) fn open_at(
        bus: &mut Bus,
        function: DeviceFunction,
        kind: DeviceType,
        vectors: u16,
    ) -> Result<Self, DeviceError> {
        bus.enable(function).map_err(|_| DeviceError::Pci(kind, "a BAR of unknown type"))?;
        let transport = PciTransport::new::<IdentityMap, _>(&mut bus.root, function)
            .map_err(|_| DeviceError::Pci(kind, "no modern virtio interface"))?;
        let registers = Registers::find(&mut bus.root, bus.config, function)
            .ok_or(DeviceError::Pci(kind, "no common or notification structure"))?;
        let table_entries = msix::enable(bus, function, vectors).ok_or(DeviceError::Pci(kind, "no MSI-X"))?;
        Ok(Self { kind, transport, registers, table_entries, doorbells: Vec::new() })
    }

    /// Resets the device and agrees on features: virtio 1, all of `required`, and what it has of `optional`; what was
    /// agreed on.
    pub(crate) fn negotiate(&mut self, required: u64, optional: u64) -> Result<u64, DeviceError> {
        let required = required | FEATURE_VERSION_1;
        self.set_status(DeviceStatus::empty());
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.set_status(status);
        let accepted = self.read_device_features() & (required | optional);
        if accepted & required != required {
            return Err(self.refused("it is not a virtio 1 device with the features it needs here"));
        }
        self.write_driver_features(accepted);
        self.set_status(status | DeviceStatus::FEATURES_OK);
        if !self.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(self.refused("it does not accept its own features"));
        }
        Ok(accepted)
    }

    /// Sets a queue up, with interrupts suppressed.
    pub(crate) fn queue<const SIZE: usize>(
        &mut self,
        index: u16,
    ) -> Result<(Queue<SIZE>, Doorbell), DeviceError> {
        let mut queue = Queue::new(self, index, false, false)
            .map_err(|_| self.refused("a queue is too short, or there is no memory for it"))?;
        queue.set_dev_notify(false);
        Ok((queue, self.registers.doorbell(index)))
    }

    /// A register of 64 bits of the device's configuration, one half after the other: wider accesses are not defined.
    pub(crate) fn read_config_u64(&self, offset: usize) -> Result<u64, DeviceError> {
        let half = |at| self.read_config_space::<u32>(at).map(u64::from);
        let both = half(offset).and_then(|low| Ok(half(offset + 4)? << 32 | low));
        both.map_err(|_| self.refused("its configuration cannot be read"))
    }

    /// That it is this device which does not do its part.
    pub(crate) fn refused(&self, reason: &'static str) -> DeviceError {
        DeviceError::Device(self.kind, reason)
    }
}

impl Transport for Function {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.transport.read_device_features() & !UNWANTED
    }

    /// Routes the configuration's interrupt too: the reset before has forgotten it.
    fn write_driver_features(&mut self, driver_features: u64) {
        self.registers.route_config(0);
        self.transport.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.transport.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        if let Some(doorbell) = self.doorbells.get_mut(usize::from(queue)) {
            doorbell.ring();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.transport.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.transport.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.transport.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.transport.requires_legacy_layout()
    }

    /// Routes the queue's interrupt first: once a queue is enabled, its vector stays.
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let routed = self.registers.route(queue, queue % self.table_entries);
        assert!(routed, "the {:?} device has no interrupt vector for queue {queue}", self.kind);
        let known = u16::try_from(self.doorbells.len()).unwrap_or(u16::MAX);
        for index in known..=queue {
            self.doorbells.push(self.registers.doorbell(index));
        }
        self.transport.queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.transport.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.transport.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.transport.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.transport.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> VirtioResult<T> {
        self.transport.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> VirtioResult<()> {
        self.transport.write_config_space(offset, value)
    }
}
