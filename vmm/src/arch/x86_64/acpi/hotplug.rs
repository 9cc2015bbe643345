//! What the DSDT says of slots in which devices come and go, and the methods a guest runs when they do.
//!
//! ```text
//!   Scope (\_SB.PCI0) {                              Scope (\_GPE) {
//!     OperationRegion (HPRG, SystemIO, port, 12)       Method (_E01) {
//!     Field { PCUP, PCDN, PCEJ: 32 bits each }           Local0 = PCUP; PCUP = Local0; Local1 = PCDN; PCDN = Local1
//!     Device (S05_) { _ADR, _SUN, _EJ0 }                 If (Local0 & 1 << 5) { Notify (S05_, 1) }  // look there
//!     ...                                                If (Local1 & 1 << 5) { Notify (S05_, 3) }  // let go of it
//!   }                                                    ...
//! ```
//! What was read is written back before anybody is told: a bit that is set meanwhile raises the event again.

use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method, Name,
    Notify, OpRegion, OpRegionSpace, Path, Scope, Store,
};
use acpi_tables::{Aml, AmlSink};

use super::IntoBytecode;
use crate::arch::layout::port;
use crate::devices::hotplug::{GPE, Register};

/// The slots in which devices come and go: bit n is slot n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlugSlots(u32);

impl PlugSlots {
    /// Whether the guest is told of none.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn iter(self) -> impl Iterator<Item = u32> {
        (0..32).filter(move |slot| self.0 >> slot & 1 == 1)
    }
}

impl FromIterator<u16> for PlugSlots {
    fn from_iter<I: IntoIterator<Item = u16>>(slots: I) -> PlugSlots {
        PlugSlots(slots.into_iter().fold(0, |all, slot| all | 1u32.checked_shl(slot.into()).unwrap_or(0)))
    }
}

/// What a guest does about a slot: ACPI's "device check" and "eject request".
const LOOK_THERE: u8 = 1;
const LET_GO: u8 = 3;

const BUS: &str = "_SB_.PCI0";

/// Appends everything; nothing without slots.
pub(super) fn write(slots: PlugSlots, code: &mut Vec<u8>) {
    if slots.is_empty() {
        return;
    }
    let registers = registers();
    let devices: Vec<_> = slots.iter().map(|slot| device(slot).bytes()).collect();
    let mut bus: Vec<&dyn Aml> = vec![&registers];
    bus.extend(devices.iter().map(|device| device as &dyn Aml));
    Scope::new(Path::new(BUS), bus).to_aml_bytes(code);
    let event = event(slots).bytes();
    Scope::new(Path::new("_GPE"), vec![&event]).to_aml_bytes(code);
}

fn registers() -> impl Aml {
    let mut code = Vec::new();
    let region = OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &port::HOTPLUG, &port::HOTPLUG_LEN);
    region.to_aml_bytes(&mut code);
    const {
        assert!(Register::Up.offset() == 0 && Register::Down.offset() == 4 && Register::Eject.offset() == 8);
    }
    let entries = [*b"PCUP", *b"PCDN", *b"PCEJ"].map(|name| FieldEntry::Named(name, 32));
    let access = (FieldAccessType::DWord, FieldLockRule::NoLock, FieldUpdateRule::WriteAsZeroes);
    Field::new("HPRG".into(), access.0, access.1, access.2, entries.into()).to_aml_bytes(&mut code);
    super::Bytecode(code)
}

fn name_of(slot: u32) -> String {
    format!("S{slot:02X}_")
}

/// A slot: its address on the bus, its number for people, and how to let go of what is in it.
fn device(slot: u32) -> impl Aml {
    let (bit, eject_register) = (1u32 << slot, Path::new("PCEJ"));
    let store = Store::new(&eject_register, &bit);
    let eject = Method::new("_EJ0".into(), 1, false, vec![&store]);
    let address = slot << 16;
    let (address, number) = (Name::new("_ADR".into(), &address), Name::new("_SUN".into(), &slot));
    Device::new(name_of(slot).as_str().into(), vec![&address, &number, &eject]).bytes()
}

/// The method that a guest runs on the event.
fn event(slots: PlugSlots) -> impl Aml {
    let register = |name: &str| Path::new(&format!("\\{BUS}.{name}"));
    let (up, down) = (register("PCUP"), register("PCDN"));
    let mut code = Vec::new();
    for (local, register) in [(Local(0), &up), (Local(1), &down)] {
        Store::new(&local, register).to_aml_bytes(&mut code);
        Store::new(register, &local).to_aml_bytes(&mut code);
    }
    for slot in slots.iter() {
        let (object, bit) = (register(&name_of(slot)), 1u32 << slot);
        for (local, what) in [(Local(0), LOOK_THERE), (Local(1), LET_GO)] {
            let set = And::new(&NoTarget, &local, &bit);
            let notify = Notify::new(&object, &what);
            If::new(&set, vec![&notify]).to_aml_bytes(&mut code);
        }
    }
    let code = super::Bytecode(code);
    Method::new(format!("_E{GPE:02X}").as_str().into(), 0, false, vec![&code]).bytes()
}

/// An operation's result is used where it stands.
struct NoTarget;

impl Aml for NoTarget {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0);
    }
}
