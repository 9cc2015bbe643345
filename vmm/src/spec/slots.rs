//! Which PCI slot each card and disk is in.

use super::{NetSpec, SpecError, VmSpec, parse::field};
use crate::arch::layout::PCI_SLOT_MAX;

/// Slots of cards and disks, in their order in the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Of the network cards.
    pub net: Vec<u16>,
    /// Of the disks.
    pub disks: Vec<u16>,
}

impl VmSpec {
    /// Where its cards and disks are: in the slots they name, the others from the lowest free one on, cards first.
    pub fn slots(&self) -> Slots {
        let said = |spec: &VmSpec| named(spec).map(|(_, slot)| slot).collect::<Vec<_>>();
        let taken = said(self);
        let mut free = (1..=PCI_SLOT_MAX).filter(|slot| !taken.contains(slot));
        // Far fewer devices than slots; see the assertion below.
        let mut place = |slot: Option<u16>| slot.or_else(|| free.next()).unwrap_or(PCI_SLOT_MAX);
        let net = self.net.iter().map(|card| place(card.slot)).collect();
        let disks = self.devices.disks.iter().map(|disk| place(disk.slot)).collect();
        Slots { net, disks }
    }

    /// The same, with every slot said.
    pub fn with_slots_said(mut self) -> VmSpec {
        let Slots { net, disks } = self.slots();
        self.net.iter_mut().zip(net).for_each(|(card, slot)| card.slot = Some(slot));
        self.devices.disks.iter_mut().zip(disks).for_each(|(disk, slot)| disk.slot = Some(slot));
        self
    }
}

const _: () = assert!(crate::limits::NICS_MAX + crate::limits::DISKS_MAX <= PCI_SLOT_MAX as usize);

fn named(spec: &VmSpec) -> impl Iterator<Item = (&'static str, u16)> + '_ {
    let card = |card: &NetSpec| card.slot.map(|slot| ("net.slot", slot));
    let disks = spec.devices.disks.iter().filter_map(|disk| disk.slot.map(|slot| ("disk.slot", slot)));
    spec.net.iter().filter_map(card).chain(disks)
}

/// No two devices name one slot.
///
/// # Errors
/// [`SpecError::Field`].
pub(super) fn check_slots(spec: &VmSpec) -> Result<(), SpecError> {
    let all: Vec<_> = named(spec).collect();
    for (index, (name, slot)) in all.iter().enumerate() {
        if all[..index].iter().any(|(_, other)| other == slot) {
            return Err(field(name, slot, "is given to two devices", "give each its own, or leave it out"));
        }
    }
    Ok(())
}

/// A slot, if one is said.
///
/// # Errors
/// [`SpecError::Field`].
pub(super) fn check_slot(name: &'static str, said: Option<i64>) -> Result<Option<u16>, SpecError> {
    let Some(slot) = said else { return Ok(None) };
    match u16::try_from(slot) {
        Ok(slot @ 1..=PCI_SLOT_MAX) => Ok(Some(slot)),
        _ => {
            let reason = format!("is not between 1 and {PCI_SLOT_MAX}");
            Err(field(name, slot, reason, "leave it out for the lowest free one"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DeviceSpecs;
    use crate::virtio::rig;

    fn spec(net: &[Option<u16>], disks: &[Option<u16>]) -> VmSpec {
        let mut spec = rig::spec(DeviceSpecs::default());
        let mac = "02:00:00:00:00:01".parse().unwrap();
        spec.net = net.iter().map(|slot| NetSpec { slot: *slot, ..NetSpec::plain("tap0", mac) }).collect();
        let table = super::super::DeviceTable::Disk("path = \"/disk\"");
        for slot in disks {
            let mut disk = table.disk(1, 0).unwrap();
            disk.slot = *slot;
            spec.devices.disks.push(disk);
        }
        spec
    }

    #[test]
    fn those_that_name_a_slot_get_it_and_the_others_fill_the_gaps() {
        let slots = spec(&[None, Some(2)], &[None, Some(1), None]).slots();
        assert_eq!(slots, Slots { net: vec![3, 2], disks: vec![4, 1, 5] });
        let plain = spec(&[None], &[None, None]).with_slots_said();
        assert_eq!(plain.devices.disks.iter().map(|d| d.slot).collect::<Vec<_>>(), [Some(2), Some(3)]);
        assert_eq!(plain.slots(), plain.clone().with_slots_said().slots());
    }

    #[test]
    fn a_slot_is_taken_once_and_there_are_so_many() {
        check_slots(&spec(&[Some(1)], &[Some(2), None])).unwrap();
        let twice = check_slots(&spec(&[Some(2)], &[Some(2)])).unwrap_err().to_string();
        assert!(twice.contains("disk.slot = \"2\" is given to two devices"), "{twice}");
        for slot in [0, -1, 28, 1 << 20] {
            let said = check_slot("disk.slot", Some(slot)).unwrap_err().to_string();
            assert!(said.contains("between 1 and 27"), "{said}");
        }
    }
}
