//! The registers.

use crate::devices::registers::copy;

/// The number of the general-purpose event, which names the method that handles it (`_E01`).
pub(crate) const GPE: u8 = 1;

/// The registers' places in their block, each of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    /// Slots with a device the guest has not been told of; ones written clear bits.
    Up = 0,
    /// Slots whose device the guest is to let go of; ones written clear bits.
    Down = 4,
    /// Ones written eject; reads as zero.
    Eject = 8,
}

impl Register {
    /// Its offset in the block.
    pub(crate) const fn offset(self) -> usize {
        self as usize
    }
}

const BLOCK_BYTES: usize = 12;
const GPE_BIT: u8 = 1 << GPE;
/// Of the event block: status, then enable.
const GPE_BYTES: usize = 2;

/// The device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hotplug {
    pub(super) up: u32,
    pub(super) down: u32,
    pub(super) status: u8,
    pub(super) enabled: u8,
}

impl Hotplug {
    /// There is a device in `slot`.
    pub(crate) fn plugged(&mut self, slot: u16) {
        self.up |= bit(slot);
        self.status |= GPE_BIT;
    }

    /// The guest shall let go of the device in `slot`.
    pub(crate) fn ask(&mut self, slot: u16) {
        self.down |= bit(slot);
        self.status |= GPE_BIT;
    }

    /// The device in `slot` is gone.
    pub(crate) fn gone(&mut self, slot: u16) {
        self.up &= !bit(slot);
        self.down &= !bit(slot);
    }

    /// Whether the interrupt line is up.
    pub(crate) fn interrupts(&self) -> bool {
        self.status & self.enabled != 0
    }

    /// Reads the event block: status, then enable.
    pub(crate) fn gpe_read(&self, offset: usize, into: &mut [u8]) {
        copy(&[self.status, self.enabled], offset, into);
    }

    /// Writes the event block: ones clear status bits, enable takes what is written.
    pub(crate) fn gpe_write(&mut self, offset: usize, data: &[u8]) {
        let mut written = [0, self.enabled];
        copy(data, 0, written.get_mut(offset..GPE_BYTES).unwrap_or_default());
        let [clear, enabled] = written;
        self.status &= !clear;
        self.enabled = enabled & GPE_BIT;
    }

    /// Reads the block.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let mut block = [0; BLOCK_BYTES];
        block[..4].copy_from_slice(&self.up.to_le_bytes());
        block[4..8].copy_from_slice(&self.down.to_le_bytes());
        copy(&block, offset, into);
    }

    /// Writes the block; returns the slots whose devices the guest has let go of.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> impl Iterator<Item = u16> + use<> {
        let mut block = [0; BLOCK_BYTES];
        copy(data, 0, block.get_mut(offset..).unwrap_or_default());
        let [up, down, eject] = [Register::Up, Register::Down, Register::Eject].map(|register| {
            let at = register.offset();
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        });
        self.up &= !up;
        self.down &= !down;
        (0..32).filter(move |slot| eject & bit(*slot) != 0)
    }
}

fn bit(slot: u16) -> u32 {
    1u32.checked_shl(u32::from(slot)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &Hotplug, register: Register) -> u32 {
        let mut bytes = [0xff; 4];
        device.read(register.offset(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(device: &mut Hotplug, register: Register, value: u32) -> Vec<u16> {
        device.write(register.offset(), &value.to_le_bytes()).collect()
    }

    #[test]
    fn the_line_follows_the_event_and_the_guest_s_wish_for_it() {
        let mut device = Hotplug::default();
        device.plugged(5);
        assert!(!device.interrupts(), "not enabled");
        device.gpe_write(1, &[0xff]);
        assert!(device.interrupts());
        let mut block = [0; 2];
        device.gpe_read(0, &mut block);
        assert_eq!(block, [GPE_BIT, GPE_BIT], "other events do not exist");
        device.gpe_write(0, &[GPE_BIT]);
        assert!(!device.interrupts());
        device.ask(6);
        assert!(device.interrupts(), "and again");
        device.gpe_write(0, &[GPE_BIT, 0]);
        assert!(!device.interrupts() && device.status == 0);
        device.gpe_write(7, &[1]);
    }

    #[test]
    fn the_guest_clears_what_it_has_seen_and_no_more() {
        let mut device = Hotplug::default();
        device.plugged(3);
        device.plugged(27);
        device.ask(4);
        assert_eq!(read(&device, Register::Up), 1 << 3 | 1 << 27);
        assert_eq!(write(&mut device, Register::Up, 1 << 3), Vec::<u16>::new());
        assert_eq!((read(&device, Register::Up), read(&device, Register::Down)), (1 << 27, 1 << 4));
        device.gone(27);
        device.gone(4);
        assert_eq!((read(&device, Register::Up), read(&device, Register::Down)), (0, 0));
    }

    #[test]
    fn what_is_ejected_is_told_once_and_not_kept() {
        let mut device = Hotplug::default();
        assert_eq!(write(&mut device, Register::Eject, 1 << 2 | 1 << 31), [2, 31]);
        assert_eq!(read(&device, Register::Eject), 0);
        assert_eq!(device.write(9, &[1]).collect::<Vec<_>>(), [8], "any width");
        assert_eq!(device.write(40, &[1]).count(), 0);
    }
}
