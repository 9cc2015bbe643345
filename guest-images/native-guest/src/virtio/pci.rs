//! Finding devices on PCI bus 0, and giving them addresses and interrupt vectors.

use crate::port::Port;
use alloc::vec::Vec;
use core::ptr;
use native_guest::memmap::MAP_LIMIT;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, MemoryBarType, PciError, PciRoot,
};

// SAFETY: configuration cycles reach device registers only; what those do to memory (bus mastering) is decided by
// the drivers that write them.
const CONFIG_ADDRESS: Port = unsafe { Port::new(0xcf8) };
// SAFETY: as above.
const CONFIG_DATA: Port = unsafe { Port::new(0xcfc) };
const CONFIG_ENABLE: u32 = 1 << 31;

/// Where QEMU's microvm has its configuration space, which has no ports for it.
const MICROVM_ECAM: usize = 0xe000_0000;

/// Where unassigned 32-bit BARs go: into the hole below 4 GiB, past what firmware uses.
const BAR_WINDOW: u64 = 0xe000_0000;
/// The same on a machine whose configuration space lies there.
const BAR_WINDOW_MICROVM: u64 = 0xc000_0000;

/// Access to configuration space, by the mechanism this machine has.
#[derive(Clone, Copy)]
pub(crate) enum Config {
    Ports,
    Ecam,
}

impl Config {
    /// The mechanism that answers here.
    pub(crate) fn probe() -> Self {
        CONFIG_ADDRESS.write_u32(CONFIG_ENABLE);
        if CONFIG_ADDRESS.read_u32() == CONFIG_ENABLE { Self::Ports } else { Self::Ecam }
    }

    fn bar_window(self) -> u64 {
        match self {
            Self::Ports => BAR_WINDOW,
            Self::Ecam => BAR_WINDOW_MICROVM,
        }
    }

    fn ecam_word(function: DeviceFunction, register: u8) -> *mut u32 {
        let offset = usize::from(function.bus) << 20
            | usize::from(function.device) << 15
            | usize::from(function.function) << 12
            | usize::from(register & !3);
        ptr::with_exposed_provenance_mut(MICROVM_ECAM + offset)
    }
}

fn select(function: DeviceFunction, register: u8) {
    let address = CONFIG_ENABLE
        | u32::from(function.bus) << 16
        | u32::from(function.device) << 11
        | u32::from(function.function) << 8
        | u32::from(register & !3);
    CONFIG_ADDRESS.write_u32(address);
}

impl ConfigurationAccess for Config {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        match self {
            Self::Ports => {
                select(function, register);
                CONFIG_DATA.read_u32()
            }
            // SAFETY: the word lies in the configuration window of bus 0, which is no RAM on the machine that has it.
            Self::Ecam => unsafe { Self::ecam_word(function, register).read_volatile() },
        }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        match self {
            Self::Ports => {
                select(function, register);
                CONFIG_DATA.write_u32(data);
            }
            // SAFETY: as in `read_word`; no reference to the window exists.
            Self::Ecam => unsafe { Self::ecam_word(function, register).write_volatile(data) },
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// Device numbers of bus 0.
const SLOTS: u8 = 32;
/// Vendor of every virtio device.
const VENDOR_VIRTIO: u16 = 0x1af4;
/// Identifiers of modern devices are the kind of device plus this.
const MODERN: u16 = 0x1040;
/// Interrupt vectors that devices get, in the order in which they are opened; the timer's is below.
const FIRST_VECTOR: u8 = 0x50;

/// Bus 0: what is on it, and what there is to be given out.
pub(crate) struct Bus {
    pub(super) root: PciRoot<Config>,
    pub(super) config: Config,
    found: Vec<(DeviceFunction, DeviceType)>,
    next_address: u64,
    next_vector: u8,
}

impl Bus {
    /// Looks at the first function of every slot; a virtio device is never another one.
    pub(crate) fn probe() -> Self {
        let config = Config::probe();
        let functions = (0..SLOTS).map(|device| DeviceFunction { bus: 0, device, function: 0 });
        let found = functions.filter_map(|at| Some((at, kind(config.read_word(at, 0))?))).collect();
        let root = PciRoot::new(config);
        Self { root, config, found, next_address: config.bar_window(), next_vector: FIRST_VECTOR }
    }

    /// The first device of a kind.
    pub(crate) fn find(&self, wanted: DeviceType) -> Option<DeviceFunction> {
        self.found.iter().find(|(_, kind)| *kind == wanted).map(|(at, _)| *at)
    }

    /// What is at an address by now.
    pub(crate) fn look(&self, at: DeviceFunction) -> Option<DeviceType> {
        kind(self.config.read_word(at, 0))
    }

    /// An interrupt vector that no device has.
    pub(super) fn vector(&mut self) -> u8 {
        let vector = self.next_vector;
        self.next_vector += 1;
        vector
    }

    /// Gives addresses to the memory BARs that have none (or one beyond the page tables), and switches on memory
    /// decoding and bus mastering. Legacy interrupts stay off.
    pub(super) fn enable(&mut self, function: DeviceFunction) -> Result<(), PciError> {
        for (index, bar) in (0_u8..).zip(self.root.bars(function)?) {
            let Some(BarInfo::Memory { address_type, address, size, .. }) = bar else { continue };
            if address != 0 && address < MAP_LIMIT {
                continue;
            }
            let address = self.next_address.next_multiple_of(size.max(4096));
            self.next_address = address + size;
            match address_type {
                MemoryBarType::Width64 => self.root.set_bar_64(function, index, address),
                _ => self.root.set_bar_32(function, index, u32::try_from(address).unwrap_or(u32::MAX)),
            }
        }
        let command = Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE;
        self.root.set_command(function, command);
        Ok(())
    }
}

/// Kind of the virtio device with these identifiers. Those of the time before virtio 1 count too, as long as the device
/// has a modern interface besides.
fn kind(identifiers: u32) -> Option<DeviceType> {
    let [v0, v1, d0, d1] = identifiers.to_le_bytes();
    if u16::from_le_bytes([v0, v1]) != VENDOR_VIRTIO {
        return None;
    }
    match u16::from_le_bytes([d0, d1]) {
        0x1000 => Some(DeviceType::Network),
        0x1001 => Some(DeviceType::Block),
        0x1002 => Some(DeviceType::MemoryBalloon),
        0x1003 => Some(DeviceType::Console),
        0x1005 => Some(DeviceType::EntropySource),
        modern => DeviceType::try_from(modern.checked_sub(MODERN)?).ok(),
    }
}
