//! ACPI tables: processors, interrupt controllers, PCI, COM1 and power-off.

mod hotplug;

use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, PackageBuilder, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{Immutable, IntoBytes};

pub(crate) use hotplug::PlugSlots;

use super::layout::{self, port};
use crate::devices::power::SLEEP_TYPE_S5;
use crate::memory::GuestRam;

const OEM: [u8; 6] = *b"MYCEL ";
const OEM_TABLE: [u8; 8] = *b"ENDOPHYT";
const OEM_REVISION: u32 = 1;
/// Revision of a DSDT whose integers have 64 bits.
const DSDT_REVISION: u8 = 2;

/// Boot architecture flags: legacy devices exist (bit 0), no 8042 (bit 1 clear), no VGA (bit 2). A controller does
/// answer at the 8042's ports, for those who reset through it; but it has neither keyboard nor mouse, and kernels that
/// are told of none do not spend their boot looking. The clock is there (bit 5 clear).
const BOOT_ARCH: u16 = 1 << 0 | 1 << 2;
/// Writing this to the reset port resets.
pub(crate) const RESET_VALUE: u8 = 0x06;

/// Writes the tables for `vcpus` processors and the `slots` in which devices come and go; returns the address of the root pointer.
///
/// # Errors
/// When the tables do not fit below 1 MiB, which needs more processors than we allow.
pub(crate) fn write(ram: &GuestRam, vcpus: u8, slots: PlugSlots) -> Result<u64, vm_memory::GuestMemoryError> {
    let mut area = Area { ram, next: layout::ACPI + 64, result: Ok(()) };
    let dsdt = area.put(&dsdt(slots));
    let fadt = area.put(&fadt(dsdt, slots));
    let madt = area.put(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.put(&xsdt);
    area.next = layout::ACPI;
    let root = area.put(&Rsdp::new(OEM, xsdt));
    area.result.map(|()| root)
}

/// Places tables one after the other.
struct Area<'a> {
    ram: &'a GuestRam,
    next: u64,
    result: Result<(), vm_memory::GuestMemoryError>,
}

impl Area<'_> {
    fn put(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        let end = at + bytes.len() as u64;
        if end > layout::LEGACY_END {
            self.result = Err(vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(end)));
        } else if self.result.is_ok() {
            self.result = self.ram.memory().write_slice(&bytes, GuestAddress(at));
        }
        self.next = end.next_multiple_of(16);
        at
    }
}

fn fadt(dsdt: u64, slots: PlugSlots) -> impl Aml {
    let register = |address: u16, bytes: u16, access| {
        let bits = u8::try_from(bytes * 8).unwrap_or(0);
        GAS::new(GasSpace::SystemIo, bits, 0, access, u64::from(address))
    };
    // The power button is one of the fixed events (its flag would say it is not); there is no sleep button.
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = u32::try_from(dsdt).unwrap_or(0).into();
    fadt.sci_int = layout::SCI_IRQ.into();
    fadt.pm1a_evt_blk = u32::from(port::PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(port::PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = register(port::PM1_EVENT, port::PM1_EVENT_LEN, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = register(port::PM1_CONTROL, port::PM1_CONTROL_LEN, AccessSize::WordAccess);
    if !slots.is_empty() {
        fadt.gpe0_blk = u32::from(port::GPE0).into();
        fadt.gpe0_blk_len = port::GPE0_LEN.to_le_bytes()[0];
        fadt.x_gpe0_blk = register(port::GPE0, port::GPE0_LEN, AccessSize::ByteAccess);
    }
    fadt.reset_reg = register(port::RESET, 1, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    // C2 and C3 are not offered.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = 0x32;
    fadt.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let mut madt =
        MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, layout::IOAPIC, 0));
    madt.add_structure(SourceOverride::timer());
    madt.add_structure(SourceOverride::sci());
    madt
}

/// MADT structure 2: an ISA interrupt that is not on the IOAPIC pin of its number, or not edge-triggered.
#[derive(Clone, IntoBytes, Immutable)]
#[repr(C, packed)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    line: [u8; 4],
    flags: [u8; 2],
}

impl SourceOverride {
    /// The timer is on pin 2.
    fn timer() -> SourceOverride {
        SourceOverride { kind: 2, length: 10, bus: 0, source: 0, line: 2u32.to_le_bytes(), flags: [0; 2] }
    }

    /// ACPI's own is level-triggered, active high.
    fn sci() -> SourceOverride {
        let line = u32::from(layout::SCI_IRQ);
        let flags = 0b1101u16.to_le_bytes();
        SourceOverride {
            kind: 2,
            length: 10,
            bus: 0,
            source: line.to_le_bytes()[0],
            line: line.to_le_bytes(),
            flags,
        }
    }
}

impl Aml for SourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

fn dsdt(slots: PlugSlots) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut code = Vec::new();
    Scope::new(Path::new("_SB_"), vec![&pci_bus(), &com1()]).to_aml_bytes(&mut code);
    let mut sleep = PackageBuilder::new();
    sleep.add_element(&SLEEP_TYPE_S5);
    sleep.add_element(&SLEEP_TYPE_S5);
    sleep.add_element(&aml::ZERO);
    sleep.add_element(&aml::ZERO);
    Name::new(Path::new("_S5_"), &sleep).to_aml_bytes(&mut code);
    hotplug::write(slots, &mut code);
    sdt.append_slice(&code);
    sdt
}

/// The host bridge: bus 0, the ports of the configuration mechanism, and the windows BARs may lie in. It has no `_OSC`, so that guests
/// use ACPI's hot plug and not PCI's own.
fn pci_bus() -> impl Aml {
    let (first, last) = layout::PCI_WINDOW;
    let resources = ResourceTemplate::new(vec![
        &AddressSpace::new_bus_number(0u16, 0u16),
        &IO::new(port::PCI_ADDRESS, port::PCI_ADDRESS, 1, 8),
        &AddressSpace::new_io(0u16, port::PCI_ADDRESS - 1, None),
        &AddressSpace::new_io(port::PCI_ADDRESS + 8, 0xffff, None),
        &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None),
    ])
    .bytes();
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_ADR"), &aml::ZERO),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .bytes()
}

fn com1() -> impl Aml {
    let resources = ResourceTemplate::new(vec![
        &IO::new(port::COM1, port::COM1, 1, 8),
        &Interrupt::new(true, true, false, false, layout::COM1_IRQ),
    ])
    .bytes();
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .bytes()
}

/// Finished byte code: lets a term outlive the parts it was made of.
struct Bytecode(Vec<u8>);

impl Aml for Bytecode {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

trait IntoBytecode: Aml {
    fn bytes(&self) -> Bytecode {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        Bytecode(bytes)
    }
}

impl<T: Aml> IntoBytecode for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_linked_and_their_sums_are_zero() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let root = write(&ram, 8, (1..=27).collect()).unwrap();
        let mut rsdp = [0u8; 36];
        ram.memory().read_slice(&mut rsdp, GuestAddress(root)).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&ram, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()), b"XSDT");
        let fadt = table(&ram, u64::from_le_bytes(xsdt[36..44].try_into().unwrap()), b"FACP");
        table(&ram, u64::from_le_bytes(xsdt[44..52].try_into().unwrap()), b"APIC");
        table(&ram, u64::from_le_bytes(fadt[140..148].try_into().unwrap()), b"DSDT");
    }

    fn table(ram: &GuestRam, at: u64, signature: &[u8; 4]) -> Vec<u8> {
        let length: u32 = ram.memory().read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_eq!(&bytes[..4], signature);
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum");
        bytes
    }
}
