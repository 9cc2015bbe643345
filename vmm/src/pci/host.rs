//! The host bridge: finds the function an access is for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

use super::{ConfigSpace, Identity};
use crate::devices::registers::copy;
use crate::state::{Fields, Payload, StateError};

/// A function in a slot of the bus. Calls come from vCPU threads; the function locks itself.
pub(crate) trait PciFunction: Send + Sync {
    /// Reads configuration space.
    fn config_read(&self, offset: usize, into: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: usize, data: &[u8]);
    /// Offset into BAR 0 if it answers at `address`. Takes no lock: it is asked for every access.
    fn claims(&self, address: u64) -> Option<u64>;
    /// Reads BAR 0.
    fn memory_read(&self, offset: u64, into: &mut [u8]);
    /// Writes BAR 0.
    fn memory_write(&self, offset: u64, data: &[u8]);
}

/// Address latch: an access to the data port goes somewhere.
const ENABLE: u32 = 1 << 31;
/// What reading from an empty slot gives.
const NOBODY: u8 = 0xff;

/// Slots of a bus.
const SLOTS: usize = 32;

type Slots = [Option<Arc<dyn PciFunction>>; SLOTS];

/// The bridge: slot 0 is itself, slots from 1 on are the functions.
pub(crate) struct PciHost {
    address: AtomicU32,
    bridge: ConfigSpace,
    /// Held only to find a function, never while one works.
    functions: RwLock<Slots>,
}

impl std::fmt::Debug for PciHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciHost").field("address", &self.address).finish_non_exhaustive()
    }
}

impl PciHost {
    /// A bus with nothing on it.
    pub(crate) fn new() -> PciHost {
        let bridge = ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [6, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        PciHost { address: AtomicU32::new(0), bridge, functions: RwLock::default() }
    }

    /// Puts a function into a slot, or takes it out (`None`).
    pub(crate) fn plug(&self, slot: u16, function: Option<Arc<dyn PciFunction>>) {
        let mut slots = self.functions.write().expect("no holder of the slots panics");
        slots[usize::from(slot)] = function;
    }

    fn function(&self, slot: usize) -> Option<Arc<dyn PciFunction>> {
        self.functions.read().expect("no holder of the slots panics").get(slot)?.clone()
    }

    /// Reads the address latch, whose four ports are one register.
    pub(crate) fn address_read(&self, byte: usize, into: &mut [u8]) {
        let latch = self.address.load(Ordering::Relaxed).to_le_bytes();
        copy(&latch, byte, into);
    }

    /// Writes the address latch; only whole writes count, as on hardware.
    pub(crate) fn address_write(&self, data: &[u8]) {
        if let Ok(whole) = data.try_into() {
            self.address.store(u32::from_le_bytes(whole) & (ENABLE | 0x00ff_fffc), Ordering::Relaxed);
        }
    }

    /// Reads the function the latch selects; `byte` is the offset within the data port.
    pub(crate) fn data_read(&self, byte: usize, into: &mut [u8]) {
        match self.selected() {
            Some((0, register)) => self.bridge.read(register + byte, into),
            Some((slot, register)) => match self.function(slot) {
                Some(function) => function.config_read(register + byte, into),
                None => into.fill(NOBODY),
            },
            None => into.fill(NOBODY),
        }
    }

    /// Writes the function the latch selects.
    pub(crate) fn data_write(&self, byte: usize, data: &[u8]) {
        if let Some((slot @ 1.., register)) = self.selected()
            && let Some(function) = self.function(slot)
        {
            function.config_write(register + byte, data);
        }
    }

    /// Slot and register in the latch: bus 0, function 0 only.
    fn selected(&self) -> Option<(usize, usize)> {
        let latch = self.address.load(Ordering::Relaxed);
        let bus_and_function = latch & 0x00ff_0700;
        let field = |shift: u32, mask: u32| usize::try_from(latch >> shift & mask).unwrap_or(0);
        (latch & ENABLE != 0 && bus_and_function == 0).then(|| (field(11, 0x1f), field(0, 0xfc)))
    }

    /// Reads from whoever answers at `address`.
    pub(crate) fn memory_read(&self, address: u64, into: &mut [u8]) {
        if let Some((function, offset)) = self.claimer(address) {
            function.memory_read(offset, into);
        }
    }

    /// Writes to whoever answers at `address`.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((function, offset)) = self.claimer(address) {
            function.memory_write(offset, data);
        }
    }

    fn claimer(&self, address: u64) -> Option<(Arc<dyn PciFunction>, u64)> {
        let slots = self.functions.read().expect("no holder of the slots panics");
        slots.iter().flatten().find_map(|f| f.claims(address).map(|offset| (Arc::clone(f), offset)))
    }

    /// Writes the section.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        out.u32(self.address.load(Ordering::Relaxed));
    }

    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<u32, StateError> {
        let latch = fields.u32()?;
        fields.finish()?;
        Ok(latch)
    }

    /// Takes the latch from a state.
    pub(crate) fn restore(&self, latch: u32) {
        self.address_write(&latch.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bridge_answers_on_an_empty_bus() {
        let host = PciHost::new();
        let mut id = [0; 4];
        for (address, expected) in [
            (0x8000_0000u32, [0x36, 0x1b, 0x08, 0x00]),
            (0x8000_0800, [0xff; 4]),
            (0x8001_0000, [0xff; 4]),
            (0x8000_0100, [0xff; 4]),
            (0x0000_0000, [0xff; 4]),
        ] {
            host.address_write(&address.to_le_bytes());
            host.data_read(0, &mut id);
            assert_eq!(id, expected, "{address:#x}");
        }
        host.address_write(&[1, 2]);
        host.data_write(0, &[0; 4]);
    }
}
