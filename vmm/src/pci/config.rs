//! The 256 bytes of one function's configuration space.

use std::ops::Range;

use crate::arch::layout::PCI_WINDOW;
use crate::state::{Fields, Payload, StateError};

/// Bytes of configuration space reached through the ports.
pub(crate) const CONFIG_BYTES: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: u8 = 0x40;

/// Command: answer memory accesses.
const COMMAND_MEMORY: u8 = 1 << 1;
/// Command: may write memory by itself; interrupts by message need it.
const COMMAND_MASTER: u8 = 1 << 2;
/// Status: there is a capability list.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Base class, subclass, interface.
    pub(crate) class: [u8; 3],
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem: u16,
}

/// Configuration space: bytes, and which bits of them the guest may change.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    next_capability: u8,
    last_pointer: usize,
}

impl ConfigSpace {
    /// Space of a function with no BARs and no capabilities.
    pub(crate) fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            next_capability: FIRST_CAPABILITY,
            last_pointer: CAPABILITIES,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        let [base, sub, interface] = identity.class;
        space.put(0x08, &[identity.revision, interface, sub, base]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.writable[COMMAND] = COMMAND_MEMORY | COMMAND_MASTER;
        space
    }

    /// Gives the function a 32-bit memory BAR 0 of `bytes` (a power of two), which is nowhere yet.
    pub(crate) fn add_bar0(&mut self, bytes: u32) {
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(bytes - 1)).to_le_bytes());
    }

    /// Puts BAR 0 at `base` and enables it, as firmware does.
    pub(crate) fn place_bar0(&mut self, base: u32) {
        self.put(BAR0, &base.to_le_bytes());
        self.bytes[COMMAND] = COMMAND_MEMORY | COMMAND_MASTER;
    }

    /// From now on nothing can be changed, and nothing answers.
    pub(crate) fn freeze(&mut self) {
        self.writable = [0; CONFIG_BYTES];
        self.bytes[COMMAND] = 0;
    }

    /// Appends a capability; `body` follows its two header bytes. Returns its offset.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = usize::from(self.next_capability);
        let end = (at + 2 + body.len()).next_multiple_of(4);
        assert!(end <= CONFIG_BYTES, "capabilities of a function are chosen to fit");
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.bytes[self.last_pointer] = self.next_capability;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.last_pointer = at + 1;
        self.next_capability = u8::try_from(end).unwrap_or(u8::MAX);
        at
    }

    /// Lets the guest change `mask` of the byte at `offset`.
    pub(crate) fn allow(&mut self, offset: usize, mask: u8) {
        self.writable[offset] |= mask;
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads; past the end nothing answers.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        for (byte, at) in into.iter_mut().zip(offset..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes the bits that may be written.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        for (new, at) in data.iter().zip(offset..) {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// One byte.
    pub(crate) fn byte(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    /// Where BAR 0 of `bytes` answers now, if it does: the host bridge passes on nothing outside its window, so that no
    /// function answers where RAM or an interrupt controller is.
    pub(crate) fn bar0(&self, bytes: u32) -> Option<Range<u64>> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let base = u64::from(bar0_base(&self.bytes));
        let (first, last) = (u64::from(PCI_WINDOW.0), u64::from(PCI_WINDOW.1));
        let range = base..base + u64::from(bytes);
        (range.start >= first && range.end <= last + 1).then_some(range)
    }

    /// Writes the space into a state.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.blob(&self.bytes);
    }

    /// Reads what [`ConfigSpace::save`] wrote.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<[u8; CONFIG_BYTES], StateError> {
        let blob = fields.blob("configuration space", CONFIG_BYTES)?;
        blob.try_into()
            .map_err(|_| fields.invalid("configuration space length", blob.len() as u64, "it must be 256"))
    }

    /// Takes the guest's settings from a state; what the function *is* stays ours.
    pub(crate) fn restore(&mut self, bytes: &[u8; CONFIG_BYTES]) {
        self.write(0, bytes);
    }
}

/// The address in BAR 0 of a configuration space.
pub(crate) fn bar0_base(bytes: &[u8; CONFIG_BYTES]) -> u32 {
    u32::from_le_bytes([bytes[BAR0] & 0xf0, bytes[BAR0 + 1], bytes[BAR0 + 2], bytes[BAR0 + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: [2, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1041,
        })
    }

    #[test]
    fn a_bar_answers_its_size_and_moves() {
        let mut space = space();
        space.add_bar0(0x8000);
        assert_eq!(space.bar0(0x8000), None);
        space.place_bar0(0xc000_0000);
        assert_eq!(space.bar0(0x8000), Some(0xc000_0000..0xc000_8000));
        space.write(BAR0, &[0xff; 4]);
        let mut size = [0; 4];
        space.read(BAR0, &mut size);
        assert_eq!(u32::from_le_bytes(size), 0xffff_8000);
        space.write(BAR0, &0xd000_0000u32.to_le_bytes());
        assert_eq!(space.bar0(0x8000), Some(0xd000_0000..0xd000_8000));
        space.write(COMMAND, &[0]);
        assert_eq!(space.bar0(0x8000), None);
    }

    #[test]
    fn a_bar_moved_over_ram_or_the_interrupt_controllers_answers_nowhere() {
        let mut space = space();
        space.add_bar0(0x8000);
        space.place_bar0(0xc000_0000);
        for base in [0u32, 0x10_0000, 0xbfff_8000, 0xfec0_0000, 0xfee0_0000, 0xffff_8000] {
            space.write(BAR0, &base.to_le_bytes());
            assert_eq!(space.bar0(0x8000), None, "{base:#x}");
        }
        space.write(BAR0, &0xfebf_8000u32.to_le_bytes());
        assert_eq!(space.bar0(0x8000), Some(0xfebf_8000..0xfec0_0000));
    }

    #[test]
    fn the_guest_cannot_change_what_the_function_is() {
        let mut space = space();
        space.write(0, &[0xff; CONFIG_BYTES]);
        let mut id = [0; 4];
        space.read(0, &mut id);
        assert_eq!(id, [0xf4, 0x1a, 0x41, 0x10]);
        space.write(CONFIG_BYTES - 1, &[1, 2, 3]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3]);
        let second = space.add_capability(0x11, &[0; 10]);
        assert_eq!((space.byte(CAPABILITIES), first), (0x40, 0x40));
        assert_eq!((usize::from(space.byte(first + 1)), space.byte(second + 1)), (second, 0));
        assert_eq!(second % 4, 0);
    }
}
