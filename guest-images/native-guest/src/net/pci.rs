//! Finding the network card on PCI bus 0 and giving it addresses.

use crate::port::Port;
use core::ptr;
use native_guest::memmap::MAP_LIMIT;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, MemoryBarType, PciError, PciRoot,
};
use virtio_drivers::transport::pci::virtio_device_type;

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

/// The first virtio network card on bus 0.
pub(crate) fn find_network_card(root: &PciRoot<Config>) -> Option<DeviceFunction> {
    root.enumerate_bus(0)
        .find(|(_, info)| virtio_device_type(info) == Some(DeviceType::Network))
        .map(|(function, _)| function)
}

/// Gives addresses to the memory BARs that have none (or one beyond the page tables), and switches on memory
/// decoding and bus mastering. Legacy interrupts stay off.
pub(crate) fn enable(
    root: &mut PciRoot<Config>,
    config: Config,
    function: DeviceFunction,
) -> Result<(), PciError> {
    let mut next = config.bar_window();
    for (index, bar) in (0_u8..).zip(root.bars(function)?) {
        let Some(BarInfo::Memory { address_type, address, size, .. }) = bar else { continue };
        if address != 0 && address < MAP_LIMIT {
            continue;
        }
        let address = next.next_multiple_of(size.max(4096));
        next = address + size;
        match address_type {
            MemoryBarType::Width64 => root.set_bar_64(function, index, address),
            _ => root.set_bar_32(function, index, u32::try_from(address).unwrap_or(u32::MAX)),
        }
    }
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE);
    Ok(())
}
