//! Devices that are plugged in and out, as ACPI's methods would have it: the registers below are what our VMM's tables name.

use crate::apic;
use crate::disk::DiskWorker;
use crate::port::Port;
use crate::serial;
use crate::virtio::Bus;
use alloc::collections::BTreeMap;
use core::ptr;
use native_guest::pattern::SECTOR_BYTES;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::DeviceFunction;

// SAFETY: these registers tell of devices and take them out of the machine; none reaches memory.
const STATUS: Port = unsafe { Port::new(0x608) };
// SAFETY: as above.
const ENABLE: Port = unsafe { Port::new(0x609) };
// SAFETY: as above.
const UP: Port = unsafe { Port::new(0x620) };
// SAFETY: as above.
const DOWN: Port = unsafe { Port::new(0x624) };
// SAFETY: as above.
const EJECT: Port = unsafe { Port::new(0x628) };
/// Event 1.
const EVENT: u8 = 1 << 1;

/// Registers of the IOAPIC: which one, and its value.
const IOAPIC_SELECT: usize = 0xfec0_0000;
const IOAPIC_WINDOW: usize = 0xfec0_0010;
/// First of the two words of pin 9, ACPI's interrupt.
const PIN_9: u32 = 0x10 + 2 * 9;
/// Level-triggered, active high, to a vector of its own.
const ROUTE: u32 = 1 << 15 | 0x4f;

/// How often the registers are looked at while awake, in nanoseconds: each look leaves the guest.
const LOOK_NS: u64 = 1_000_000;
/// Sectors of a disk that are written and read back.
const PROBED: u64 = 16;

/// What has been plugged in.
pub(crate) struct Plug {
    disks: BTreeMap<u8, DiskWorker>,
    /// Slot of the disk that was there from the start.
    first: Option<u8>,
    next_look_ns: u64,
    rounds: u8,
}

impl Plug {
    /// Has the event interrupt from now on.
    pub(crate) fn new(bus: &Bus) -> Self {
        let id = u32::try_from(apic::msi_address() >> 12 & 0xff).unwrap_or(0);
        ioapic(PIN_9 + 1, id << 24);
        ioapic(PIN_9, ROUTE);
        ENABLE.write_u8(EVENT);
        let first = bus.find(DeviceType::Block).map(|at| at.device);
        Self { disks: BTreeMap::new(), first, next_look_ns: 0, rounds: 0 }
    }

    /// Does what the registers ask for; `disk` is the one from the start. Whether there was anything, and when to call again.
    pub(crate) fn turn(
        &mut self,
        bus: &mut Bus,
        disk: &mut Option<DiskWorker>,
        now_ns: u64,
    ) -> (bool, Option<u64>) {
        if now_ns < self.next_look_ns {
            return (false, Some(self.next_look_ns));
        }
        self.next_look_ns = now_ns + LOOK_NS;
        if STATUS.read_u8() & EVENT == 0 {
            return (false, None);
        }
        STATUS.write_u8(EVENT);
        let (up, down) = (UP.read_u32(), DOWN.read_u32());
        UP.write_u32(up);
        DOWN.write_u32(down);
        for slot in (0_u8..32).filter(|slot| up >> slot & 1 == 1) {
            self.came(bus, slot);
        }
        for slot in (0_u8..32).filter(|slot| down >> slot & 1 == 1) {
            self.let_go(slot, disk);
        }
        (true, None)
    }

    fn came(&mut self, bus: &mut Bus, slot: u8) {
        let at = DeviceFunction { bus: 0, device: slot, function: 0 };
        match bus.look(at) {
            Some(DeviceType::Block) => {
                let opened = DiskWorker::at(bus, at);
                let mut disk = opened.unwrap_or_else(|error| panic!("plug: slot {slot}: {error}"));
                self.rounds = self.rounds.wrapping_add(1);
                probe(&mut disk, self.rounds);
                serial::line(format_args!("plug: slot {slot} disk sectors={} ok", disk.sectors()));
                self.disks.insert(slot, disk);
            }
            Some(kind) => serial::line(format_args!("plug: slot {slot} {kind:?}")),
            None => serial::line(format_args!("plug: slot {slot} is empty")),
        }
    }

    fn let_go(&mut self, slot: u8, first: &mut Option<DiskWorker>) {
        // Another disk may come to the slot of the first.
        let is_first = self.first.take_if(|first| *first == slot).is_some();
        let disk = if is_first { first.take() } else { self.disks.remove(&slot) };
        if let Some(mut disk) = disk {
            self.rounds = self.rounds.wrapping_add(1);
            probe(&mut disk, self.rounds);
        }
        // Dropped before, which resets it.
        serial::line(format_args!("plug: slot {slot} ok, let go"));
        EJECT.write_u32(1 << slot);
    }
}

/// Writes the first sectors, makes them last, and reads them back.
fn probe(disk: &mut DiskWorker, round: u8) {
    let sectors = disk.sectors().min(PROBED);
    for sector in 0..sectors {
        disk.write(sector, byte(sector, round)).unwrap_or_else(|error| panic!("plug: write: {error}"));
    }
    disk.flush().unwrap_or_else(|error| panic!("plug: flush: {error}"));
    for sector in 0..sectors {
        let read = disk.read(sector).unwrap_or_else(|error| panic!("plug: read: {error}"));
        assert!(read == [byte(sector, round); SECTOR_BYTES], "plug: sector {sector} is not as written");
    }
}

fn byte(sector: u64, round: u8) -> u8 {
    sector.to_le_bytes()[0].wrapping_add(round.wrapping_mul(16))
}

fn ioapic(register: u32, value: u32) {
    let at = |address: usize| -> *mut u32 { ptr::with_exposed_provenance_mut(address) };
    // SAFETY: the IOAPIC's two registers are device memory in the hole below 4 GiB, mapped and owned by no Rust object; they
    // say where interrupts go, which are taken only in `traps::sleep`.
    unsafe {
        at(IOAPIC_SELECT).write_volatile(register);
        at(IOAPIC_WINDOW).write_volatile(value);
    }
}
