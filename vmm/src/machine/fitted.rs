//! The devices a machine has at the moment, by slot.

use std::sync::{Arc, Mutex};

use super::MachineError;
use super::metrics::Numbered;
use crate::devices::balloon::BalloonDevice;
use crate::devices::block::Disk;
use crate::devices::console::ConsoleDevice;
use crate::devices::net::Nic;
use crate::devices::rng::RngDevice;
use crate::devices::vsock::VsockDevice;
use crate::kvm::KvmError;
use crate::spec::{DiskSpec, NetSpec};
use crate::state::{Sections, StateWriter};
use crate::virtio::{SavedDevice, VirtioDevice};

/// What is in a slot.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    pub(super) slot: u16,
    /// Which of its type it is: the name of its counters, and of nothing else.
    pub(super) number: u16,
    /// The guest may let go of it.
    pub(super) removable: bool,
    pub(super) what: What,
    /// As it is when the machine is switched on.
    pub(super) power_on: Arc<Mutex<SavedDevice>>,
}

/// The device itself.
#[derive(Clone, Debug)]
pub(super) enum What {
    Nic {
        nic: Arc<Nic>,
        spec: NetSpec,
        /// As a guest could tell it from another card.
        card: String,
    },
    Disk {
        disk: Arc<Disk>,
        spec: DiskSpec,
    },
    Vsock(Arc<VsockDevice>),
    Console(Arc<ConsoleDevice>),
    Rng(Arc<RngDevice>),
    Balloon(Arc<BalloonDevice>),
}

impl What {
    /// The device, whatever its type.
    pub(super) fn device(&self) -> Arc<dyn VirtioDevice> {
        match self {
            What::Nic { nic, .. } => Arc::clone(nic) as _,
            What::Disk { disk, .. } => Arc::clone(disk) as _,
            What::Vsock(device) => Arc::clone(device) as _,
            What::Console(device) => Arc::clone(device) as _,
            What::Rng(device) => Arc::clone(device) as _,
            What::Balloon(device) => Arc::clone(device) as _,
        }
    }
}

impl Fitted {
    /// A device that has just been made.
    ///
    /// # Errors
    /// [`MachineError`], not with a device that can read what it wrote.
    pub(super) fn new(slot: u16, number: u16, removable: bool, what: What) -> Result<Fitted, MachineError> {
        let device = what.device();
        let (section, mut state) = (device.section().0, Vec::new());
        let mut writer = StateWriter::new(&mut state);
        writer.section(section, slot, |payload| {
            device.save(payload);
            Ok::<(), KvmError>(())
        })?;
        writer.finish();
        let saved = device.decode(Sections::parse(&state)?.take(section, slot)?)?;
        Ok(Fitted { slot, number, removable, what, power_on: Arc::new(Mutex::new(saved)) })
    }

    /// The device, whatever its type.
    pub(super) fn device(&self) -> Arc<dyn VirtioDevice> {
        self.what.device()
    }

    /// What people call it; `None` for devices that every machine has one of at most.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.what {
            What::Nic { spec, .. } => Some(&spec.tap),
            What::Disk { spec, .. } => Some(&spec.serial),
            _ => None,
        }
    }

    /// Whether `name` means this device: a disk's serial number, a card's tap or address, `slot:N`.
    pub(super) fn is_called(&self, name: &str) -> bool {
        let by_slot = name.strip_prefix("slot:").is_some_and(|slot| slot.parse() == Ok(self.slot));
        let by_address = matches!(&self.what, What::Nic { spec, .. } if spec.mac.to_string() == name);
        self.name().is_some_and(|own| own == name || by_slot || by_address)
    }
}

/// All of them, in the order of the spec: those that came later are behind the others of their type.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices(pub(super) Vec<Fitted>);

impl Devices {
    pub(super) fn all(&self) -> Vec<Arc<dyn VirtioDevice>> {
        self.0.iter().map(Fitted::device).collect()
    }

    pub(super) fn nics(&self) -> impl Iterator<Item = (&Fitted, &Arc<Nic>)> {
        self.0.iter().filter_map(|fitted| match &fitted.what {
            What::Nic { nic, .. } => Some((fitted, nic)),
            _ => None,
        })
    }

    pub(super) fn disks(&self) -> impl Iterator<Item = (&Fitted, &Arc<Disk>)> {
        self.0.iter().filter_map(|fitted| match &fitted.what {
            What::Disk { disk, .. } => Some((fitted, disk)),
            _ => None,
        })
    }

    pub(super) fn net_specs(&self) -> Vec<NetSpec> {
        let spec = |fitted: &Fitted| match &fitted.what {
            What::Nic { spec, .. } => Some(NetSpec { slot: Some(fitted.slot), ..spec.clone() }),
            _ => None,
        };
        self.0.iter().filter_map(spec).collect()
    }

    pub(super) fn disk_specs(&self) -> Vec<DiskSpec> {
        let spec = |fitted: &Fitted| match &fitted.what {
            What::Disk { spec, .. } => Some(DiskSpec { slot: Some(fitted.slot), ..spec.clone() }),
            _ => None,
        };
        self.0.iter().filter_map(spec).collect()
    }

    /// The cards as a guest could tell them from others.
    pub(super) fn cards(&self) -> Vec<String> {
        let card = |fitted: &Fitted| match &fitted.what {
            What::Nic { card, .. } => Some(card.clone()),
            _ => None,
        };
        self.0.iter().filter_map(card).collect()
    }

    /// The disks whose changes are followed, as two machines must have them alike.
    pub(super) fn followed(&self) -> Vec<String> {
        let followed = self.disks().filter(|(_, disk)| disk.is_followed());
        let describe = |(fitted, disk): (&Fitted, &Arc<Disk>)| {
            format!("replicated disk {} of {} bytes", fitted.name().unwrap_or_default(), disk.bytes())
        };
        followed.map(describe).collect()
    }

    /// The first of one type.
    pub(super) fn only<T>(&self, pick: impl Fn(&What) -> Option<&Arc<T>>) -> Option<Arc<T>> {
        self.0.iter().find_map(|fitted| pick(&fitted.what)).cloned()
    }

    /// Counters, each with the number of its device.
    pub(super) fn numbered<T>(&self, of: impl Fn(&What) -> Option<T>) -> Vec<Numbered<T>> {
        let one = |fitted: &Fitted| of(&fitted.what).map(|of| Numbered { number: fitted.number, of });
        self.0.iter().filter_map(one).collect()
    }

    /// The lowest number that no device of this kind has.
    pub(super) fn free_number(&self, kind: impl Fn(&What) -> bool) -> u16 {
        let taken: Vec<u16> = self.0.iter().filter(|f| kind(&f.what)).map(|f| f.number).collect();
        (0..).find(|number| !taken.contains(number)).expect("there are fewer devices than numbers")
    }
}
