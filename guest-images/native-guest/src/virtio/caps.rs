//! Registers of a virtio PCI device that virtio-drivers keeps to itself: the interrupt vector of a queue and the
//! address of its doorbell. virtio-drivers has no MSI-X, and reads two registers before each doorbell it rings.

use super::function::Queue;
use super::pci::Config;
use core::ptr;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_NOTIFY_CFG};

/// Capability identifier of vendor-specific structures, which virtio uses.
const CAP_VENDOR: u8 = 0x09;

// Offsets in virtio_pci_common_cfg (virtio 1.2, 4.1.4.3).
const CONFIG_MSIX_VECTOR: usize = 0x10;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_NOTIFY_OFF: usize = 0x1e;

/// A location in one of the device's BARs, as a physical address.
pub(crate) fn bar_address(
    root: &mut PciRoot<Config>,
    function: DeviceFunction,
    bar: u8,
    offset: u32,
) -> Option<usize> {
    let (address, size) = root.bar_info(function, bar).ok()??.memory_address_size()?;
    if address == 0 || u64::from(offset) >= size {
        return None;
    }
    usize::try_from(address + u64::from(offset)).ok()
}

/// The common configuration and the doorbells of one device.
pub(crate) struct Registers {
    common: usize,
    notify: usize,
    notify_multiplier: usize,
}

impl Registers {
    /// Finds them in the device's capabilities.
    pub(crate) fn find(root: &mut PciRoot<Config>, config: Config, function: DeviceFunction) -> Option<Self> {
        let (common, _) = structure(root, config, function, VIRTIO_PCI_CAP_COMMON_CFG)?;
        let (notify, capability) = structure(root, config, function, VIRTIO_PCI_CAP_NOTIFY_CFG)?;
        let multiplier = config.read_word(function, capability.checked_add(16)?);
        Some(Self { common, notify, notify_multiplier: usize::try_from(multiplier).ok()? })
    }

    fn common_u16(&self, offset: usize) -> *mut u16 {
        ptr::with_exposed_provenance_mut(self.common + offset)
    }

    /// Routes the interrupts of `queue` to an entry of the MSI-X table. To be called before the queue is enabled.
    /// Whether the device had resources for it.
    pub(crate) fn route(&self, queue: u16, table_entry: u16) -> bool {
        // SAFETY: `common` is the device's common configuration, found through its own capability: device
        // registers, no memory of ours. virtio-drivers selects a queue anew before each use of the selection.
        unsafe {
            self.common_u16(QUEUE_SELECT).write_volatile(queue);
            self.common_u16(QUEUE_MSIX_VECTOR).write_volatile(table_entry);
            self.common_u16(QUEUE_MSIX_VECTOR).read_volatile() == table_entry
        }
    }

    /// Routes the interrupt for changes of the device's configuration. To be called after a reset of the device.
    pub(crate) fn route_config(&self, table_entry: u16) {
        // SAFETY: as in `route`.
        unsafe { self.common_u16(CONFIG_MSIX_VECTOR).write_volatile(table_entry) }
    }

    /// The doorbell of `queue`.
    pub(crate) fn doorbell(&self, queue: u16) -> Doorbell {
        // SAFETY: as in `route`.
        let offset = unsafe {
            self.common_u16(QUEUE_SELECT).write_volatile(queue);
            self.common_u16(QUEUE_NOTIFY_OFF).read_volatile()
        };
        let address = self.notify + usize::from(offset) * self.notify_multiplier;
        Doorbell { register: ptr::with_exposed_provenance_mut(address), queue }
    }
}

/// A register whose writing tells the device to look at a queue.
pub(crate) struct Doorbell {
    register: *mut u16,
    queue: u16,
}

impl Doorbell {
    /// Rings unless the device said that it is looking anyway. The fence orders our publishing of buffers before our
    /// reading of its wish.
    pub(crate) fn ring_if_wanted<const SIZE: usize>(&mut self, queue: &Queue<SIZE>) {
        fence(Ordering::SeqCst);
        if queue.should_notify() {
            self.ring();
        }
    }

    /// Rings it.
    pub(crate) fn ring(&mut self) {
        // SAFETY: the register lies in the device's notification structure; writing the queue's number there is
        // what it is for, and the queue's memory is set up before a `Doorbell` is used.
        unsafe { self.register.write_volatile(self.queue) }
    }
}

/// Address of the virtio structure of a kind, and where its capability is.
fn structure(
    root: &mut PciRoot<Config>,
    config: Config,
    function: DeviceFunction,
    kind: u8,
) -> Option<(usize, u8)> {
    let is_it = |header: u16| header.to_le_bytes()[1] == kind;
    let found = root.capabilities(function).find(|cap| cap.id == CAP_VENDOR && is_it(cap.private_header))?;
    let bar = config.read_word(function, found.offset.checked_add(4)?).to_le_bytes()[0];
    let offset = config.read_word(function, found.offset.checked_add(8)?);
    Some((bar_address(root, function, bar, offset)?, found.offset))
}
