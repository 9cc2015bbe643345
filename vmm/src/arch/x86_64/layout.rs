//! Where things are: guest physical addresses, I/O ports and interrupt lines.
//!
//! ```text
//!   0x0000_0000  RAM (boot structures in the first MiB)
//!   0xc000_0000  hole: PCI memory, IOAPIC, local APIC, KVM's own pages
//!   1_0000_0000  RAM beyond 3 GiB
//! ```

/// End of the low part of RAM (3 GiB).
pub const RAM_LOW_END: u64 = 0xc000_0000;
/// Start of the high part of RAM (4 GiB).
pub const RAM_HIGH_START: u64 = 1 << 32;

/// Window for PCI memory BARs.
pub const PCI_WINDOW: (u32, u32) = (0xc000_0000, 0xfebf_ffff);
/// Address distance between the BARs of two PCI slots.
const PCI_SLOT_STRIDE: u32 = 1 << 20;
/// Slots in which devices come and go: 1 to this. Behind them are those that every machine has one of at most.
pub const PCI_SLOT_MAX: u16 = 27;
/// Slot of the socket device.
pub(crate) const VSOCK_SLOT: u16 = 28;
/// Slot of the paravirtual console.
pub(crate) const CONSOLE_SLOT: u16 = 29;
/// Slot of the entropy source.
pub(crate) const RNG_SLOT: u16 = 30;
/// Slot of the balloon.
pub(crate) const BALLOON_SLOT: u16 = 31;
/// Registers of the IOAPIC.
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
/// Registers of the local APICs.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages Intel hardware needs for real mode; KVM takes them from the guest's address space.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;
/// The page before them, for the identity map of the same emulation.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Top of a small stack: the protocol promises none, but guests tried elsewhere have come to rely on one.
pub(crate) const PVH_STACK: u64 = 0x6000;
/// PVH start info, its module list and its memory map.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
pub(crate) const PVH_MODULES: u64 = 0x6800;
pub(crate) const PVH_MEMORY_MAP: u64 = 0x7000;
/// Boot parameters and descriptor table of Linux's own protocol.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
pub(crate) const BOOT_GDT: u64 = 0x500;
/// Kernel command line.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// First address above usable conventional memory, as PC firmware reports it.
pub(crate) const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables, RSDP first: where guests without a boot protocol look for it.
pub(crate) const ACPI: u64 = 0xe_0000;
/// End of the legacy area; kernels load from here on.
pub(crate) const LEGACY_END: u64 = 0x10_0000;

/// First port and number of ports of each device.
pub(crate) mod port {
    pub(crate) const KEYBOARD_DATA: u16 = 0x60;
    pub(crate) const KEYBOARD_COMMAND: u16 = 0x64;
    pub(crate) const CMOS: u16 = 0x70;
    pub(crate) const CMOS_LEN: u16 = 2;
    pub(crate) const COM1: u16 = 0x3f8;
    pub(crate) const COM1_LEN: u16 = 8;
    pub(crate) const PVPANIC: u16 = 0x505;
    pub(crate) const WATCHDOG: u16 = 0x510;
    pub(crate) const WATCHDOG_LEN: u16 = 2;
    pub(crate) const PM1_EVENT: u16 = 0x600;
    pub(crate) const PM1_EVENT_LEN: u16 = 4;
    pub(crate) const PM1_CONTROL: u16 = 0x604;
    pub(crate) const PM1_CONTROL_LEN: u16 = 2;
    /// General-purpose events: status and enable, a byte each.
    pub(crate) const GPE0: u16 = 0x608;
    pub(crate) const GPE0_LEN: u16 = 2;
    pub(crate) const HOTPLUG: u16 = 0x620;
    pub(crate) const HOTPLUG_LEN: u16 = 12;
    pub(crate) const PCI_ADDRESS: u16 = 0xcf8;
    pub(crate) const RESET: u16 = 0xcf9;
    pub(crate) const PCI_DATA: u16 = 0xcfc;
}

/// The real-time clock's interrupt line.
pub(crate) const RTC_IRQ: u32 = 8;
/// COM1's interrupt line.
pub(crate) const COM1_IRQ: u32 = 4;
/// ACPI's interrupt line: the power button, and devices that come or go.
pub(crate) const SCI_IRQ: u16 = 9;
/// Lines of the IOAPIC; message interrupts are numbered after them.
pub(crate) const IOAPIC_LINES: u32 = 24;

/// Where BAR 0 of the device in `slot` is when the machine is switched on. Slot 0 is the bridge.
pub(crate) fn bar_of(slot: u16) -> u32 {
    PCI_WINDOW.0 + PCI_SLOT_STRIDE * u32::from(slot.saturating_sub(1))
}

/// The parts of `bytes` of RAM as (guest address, length).
pub(crate) fn ram_ranges(bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let low = bytes.min(RAM_LOW_END);
    [(0, low), (RAM_HIGH_START, bytes - low)].into_iter().filter(|(_, len)| *len > 0)
}
