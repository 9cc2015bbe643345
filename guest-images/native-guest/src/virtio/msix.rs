//! MSI-X: interrupts as memory writes to the local APIC.

use super::caps::bar_address;
use super::pci::Bus;
use crate::apic;
use core::ptr;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

const CAP_MSIX: u8 = 0x11;
const ENABLE: u32 = 1 << 31;
const FUNCTION_MASK: u32 = 1 << 30;

/// Switches MSI-X on with `wanted` table entries or as many as there are, each with a vector of its own; how many.
/// `None` if the device lacks it.
pub(super) fn enable(bus: &mut Bus, function: DeviceFunction, wanted: u16) -> Option<u16> {
    let mut config = bus.config;
    let capability = bus.root.capabilities(function).find(|cap| cap.id == CAP_MSIX)?.offset;
    let control = config.read_word(function, capability);
    let entries = wanted.min(u16::try_from(control >> 16 & 0x7ff).ok()? + 1);
    let location = config.read_word(function, capability.checked_add(4)?);
    let table = bar_address(&mut bus.root, function, location.to_le_bytes()[0] & 7, location & !7)?;
    config.write_word(function, capability, control | ENABLE | FUNCTION_MASK);
    for entry in 0..entries {
        write_entry(table + 16 * usize::from(entry), bus.vector());
    }
    config.write_word(function, capability, (control | ENABLE) & !FUNCTION_MASK);
    Some(entries)
}

/// Fills a table entry: address (two words), data, and a control word whose bit 0 masks.
fn write_entry(address: usize, vector: u8) {
    let [low, high] = [apic::msi_address() & 0xffff_ffff, apic::msi_address() >> 32];
    let entry: *mut u32 = ptr::with_exposed_provenance_mut(address);
    let words = [u32::try_from(low), u32::try_from(high), Ok(u32::from(vector)), Ok(0)];
    for (at, word) in words.into_iter().enumerate() {
        // SAFETY: `address` lies in the MSI-X table the device's capability names, and the table has an entry
        // there: device registers, no memory of ours.
        unsafe { entry.add(at).write_volatile(word.unwrap_or(0)) }
    }
}
