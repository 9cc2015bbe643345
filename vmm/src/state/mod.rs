//! The saved machine: one versioned binary format for snapshot, restore and replication.
//!
//! ```text
//!   header   "ENDOSTAT"  format u16  sections u16  length u32 (whole state, bytes)
//!   section  id u16  version u16  instance u16  reserved u16 (0)  length u32  payload
//! ```
//! Little-endian throughout. Sections come in any order, each `(id, instance)` once. A reader refuses what it
//! does not know: a section skipped is a device that silently forgets. Every payload is read to its last byte.

mod reader;
mod writer;

pub(crate) use reader::{Fields, Sections};
pub(crate) use writer::{Payload, StateWriter};

/// Version of header and section framing.
pub const FORMAT_VERSION: u16 = 1;

pub(crate) const MAGIC: &[u8; 8] = b"ENDOSTAT";
pub(crate) const HEADER_BYTES: usize = 16;
pub(crate) const SECTION_HEADER_BYTES: usize = 12;

/// A part of the machine that has its own section. The number is the wire id; never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum SectionId {
    /// Sizes that must match the machine, and why it stands still if it does.
    Machine = 1,
    /// Guest clocks.
    Time = 2,
    /// Interrupt controllers and the interval timer.
    Chips = 3,
    /// One vCPU; the instance is its number.
    Vcpu = 4,
    /// COM1.
    Serial = 16,
    /// Real-time clock and its memory.
    Cmos = 17,
    /// ACPI power registers.
    Power = 18,
    /// Watchdog.
    Watchdog = 19,
    /// PCI configuration address latch.
    PciHost = 20,
    /// Keyboard controller.
    Keyboard = 21,
    /// Registers by which devices are plugged in and out.
    Hotplug = 22,
    /// One network card; the instance is its slot.
    Net = 32,
    /// One disk; the instance is its slot.
    Block = 33,
    /// The socket device.
    Vsock = 34,
    /// The paravirtual console.
    Console = 35,
    /// The entropy source.
    Rng = 36,
    /// The balloon.
    Balloon = 37,
}

impl SectionId {
    const ALL: [SectionId; 17] = [
        SectionId::Machine,
        SectionId::Time,
        SectionId::Chips,
        SectionId::Vcpu,
        SectionId::Serial,
        SectionId::Cmos,
        SectionId::Power,
        SectionId::Watchdog,
        SectionId::PciHost,
        SectionId::Keyboard,
        SectionId::Hotplug,
        SectionId::Net,
        SectionId::Block,
        SectionId::Vsock,
        SectionId::Console,
        SectionId::Rng,
        SectionId::Balloon,
    ];

    fn from_wire(id: u16) -> Option<SectionId> {
        Self::ALL.into_iter().find(|known| *known as u16 == id)
    }

    /// Version this build writes, and the only one it reads.
    pub(crate) fn version(self) -> u16 {
        match self {
            // Power: the status register came with the button. Cmos: the offset of the clock the guest set. Net: how many
            // pairs of queues are in use.
            SectionId::Net | SectionId::Power | SectionId::Cmos => 2,
            _ => 1,
        }
    }
}

impl std::fmt::Display for SectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            SectionId::Machine => "machine",
            SectionId::Time => "time",
            SectionId::Chips => "chips",
            SectionId::Vcpu => "vcpu",
            SectionId::Serial => "serial",
            SectionId::Cmos => "cmos",
            SectionId::Power => "power",
            SectionId::Watchdog => "watchdog",
            SectionId::PciHost => "pci-host",
            SectionId::Keyboard => "keyboard",
            SectionId::Hotplug => "hotplug",
            SectionId::Net => "net",
            SectionId::Block => "block",
            SectionId::Vsock => "vsock",
            SectionId::Console => "console",
            SectionId::Rng => "rng",
            SectionId::Balloon => "balloon",
        };
        f.write_str(name)
    }
}

/// Why a saved state cannot be restored. Nothing of it has been applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// It does not begin like one.
    #[error(
        "not a machine state: it does not begin with the magic; the sender is no endophyte or the data is damaged"
    )]
    BadMagic,
    /// Another framing version.
    #[error("state format {found}, this build reads {FORMAT_VERSION}; run the same release on both nodes")]
    FormatVersion {
        /// Version found.
        found: u16,
    },
    /// The length in the header is not the length received.
    #[error("state says it has {said} bytes but {got} arrived; it was cut or padded on the way")]
    Length {
        /// Bytes the header announces.
        said: u64,
        /// Bytes received.
        got: u64,
    },
    /// More sections, or a longer state, than any machine has.
    #[error("state exceeds the bound of {bound} {unit}; the sender is hostile or damaged")]
    TooLarge {
        /// The bound exceeded.
        bound: usize,
        /// What it counts.
        unit: &'static str,
    },
    /// A section of a kind this build does not know.
    #[error("unknown section {id}; run the same release on both nodes")]
    UnknownSection {
        /// Its id.
        id: u16,
    },
    /// A section this build knows in another version.
    #[error(
        "section {section} has version {found}, this build reads {known}; run the same release on both nodes"
    )]
    SectionVersion {
        /// The section.
        section: SectionId,
        /// Version found.
        found: u16,
        /// Version read by this build.
        known: u16,
    },
    /// A section is there twice.
    #[error("section {section} of instance {instance} appears twice; the state is damaged")]
    Duplicate {
        /// The section.
        section: SectionId,
        /// Its instance.
        instance: u16,
    },
    /// A section this machine needs is missing, or one is there for a device it does not have.
    #[error("section {section} of instance {instance} is {problem}; compare the VM specs of both nodes")]
    Mismatch {
        /// The section.
        section: SectionId,
        /// Its instance.
        instance: u16,
        /// "missing" or "for a device this machine does not have".
        problem: &'static str,
    },
    /// A section ends before its contents do, or goes on after them.
    #[error("section {section} is {problem}; the state is damaged")]
    Shape {
        /// The section.
        section: SectionId,
        /// "cut short" or "longer than its contents".
        problem: &'static str,
    },
    /// A field holds what it cannot.
    #[error("section {section}: {field} is {value:#x}, {reason}")]
    Invalid {
        /// The section.
        section: SectionId,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Why that cannot be.
        reason: &'static str,
    },
}
