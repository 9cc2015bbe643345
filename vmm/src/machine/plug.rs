//! Attaching and detaching cards and disks while the machine runs, or stands.
//!
//! ```text
//!   attach:  open, build, start its thread ── plug ── the guest is told ("up")
//!   detach:  ask_to_detach ("down") ── the guest lets go, writes "eject" ── out of its slot, holding still, MachineEvent::Ejected
//!                                                                          └── clear_away: thread ends, files are closed
//! ```
//! A guest may also let go of a device by itself; the second line then begins in its middle.

use std::sync::Arc;

use super::build::nic;
use super::device_thread::DeviceThread;
use super::fitted::{Devices, Fitted, What};
use super::platform::lock;
use super::{Machine, MachineError};
use crate::arch::acpi::PlugSlots;
use crate::arch::layout::PCI_SLOT_MAX;
use crate::devices::block::{Behind, Disk, DiskImage, ImageError};
use crate::devices::net::NicPort;
use crate::kvm::KvmError;
use crate::limits::{DISKS_MAX, NICS_MAX};
use crate::spec::{DiskSpec, NetSpec};
use crate::virtio::Place;

/// Why a device cannot come or go. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The machine was built so.
    #[error("this machine's devices cannot change while it runs; change its spec and start it again")]
    Fixed,
    /// There is no room for it.
    #[error("the VM has {most} {what} already, the most there can be; detach one first")]
    Full {
        /// Disks or network cards.
        what: &'static str,
        /// How many.
        most: usize,
    },
    /// Something of it is in use in this VM.
    #[error("{field} {value} is in use by another device of this VM; choose another")]
    Taken {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// There is no such device.
    #[error("the VM has no device {name}; it has {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// There are several.
    #[error("{name} means several devices of the VM; say slot:N, with the slot that Info shows")]
    Ambiguous {
        /// What was asked for.
        name: String,
    },
    /// The guest cannot let go of it.
    #[error(
        "{name} cannot be detached: the guest boots from it, or it is a card without `removable = true` in the spec"
    )]
    Built {
        /// The device.
        name: String,
    },
    /// The image.
    #[error(transparent)]
    Disk(#[from] ImageError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// A card or disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNow {
    /// PCI slot.
    pub slot: u16,
    /// A disk; a network card otherwise.
    pub is_disk: bool,
    /// A disk's serial number, a card's tap.
    pub name: String,
    /// Whether the guest can be asked to let go of it.
    pub removable: bool,
}

/// A device that has been taken out.
#[derive(Debug)]
pub struct Departed {
    /// The slot it was in.
    pub slot: u16,
    /// What it was called.
    pub name: String,
    /// What went wrong at the end: written data may be lost.
    pub trouble: Option<PlugError>,
}

impl Machine {
    /// Cards and disks, in the order of the spec.
    pub fn devices_now(&self) -> Vec<DeviceNow> {
        let now = |fitted: &Fitted| {
            Some(DeviceNow {
                slot: fitted.slot,
                is_disk: is_disk(&fitted.what),
                name: fitted.name()?.to_owned(),
                removable: fitted.removable,
            })
        };
        self.platform.fitted().0.iter().filter_map(now).collect()
    }

    /// The number a disk gets that is attached next; its serial number is named after it if nothing else is said.
    pub fn next_disk_number(&self) -> u16 {
        self.platform.fitted().free_number(is_disk)
    }

    /// Opens a disk and puts it into its slot, or the lowest free one, which is returned. The guest is told; what it makes of
    /// that is its own affair.
    ///
    /// # Errors
    /// [`PlugError`].
    pub fn attach_disk(&self, spec: &DiskSpec) -> Result<u16, PlugError> {
        let slot = self.room_for_disk(spec)?;
        let behind = Behind::Open(DiskImage::open(spec)?);
        let disk = Arc::new(Disk::attach(self.place(slot), spec, behind, None)?);
        disk.recover()?;
        self.fit(slot, What::Disk { disk, spec: spec.clone() })
    }

    /// Puts a card into its slot, or the lowest free one, which is returned. It is removable whatever its spec says.
    ///
    /// # Errors
    /// [`PlugError`].
    pub fn attach_nic(&self, spec: &NetSpec, port: NicPort) -> Result<u16, PlugError> {
        let slot = self.room_for_nic(spec)?;
        let what = nic(self.place(slot), &NetSpec { removable: true, ..spec.clone() }, port)?;
        if let What::Nic { nic, .. } = &what {
            nic.set_rx_enabled(true);
        }
        self.fit(slot, what)
    }

    /// Asks the guest to let go of the card or disk called `name` (a disk's serial number, a card's tap or address,
    /// `slot:N`); returns its slot. [`MachineEvent::Ejected`](super::MachineEvent::Ejected) tells when it has.
    ///
    /// # Errors
    /// [`PlugError`].
    pub fn ask_to_detach(&self, name: &str) -> Result<u16, PlugError> {
        let devices = self.platform.fitted().clone();
        let slot = find(&devices, name)?;
        if !self.platform.is_pluggable() {
            return Err(PlugError::Fixed);
        }
        self.platform.with_acpi(|acpi| acpi.hotplug.ask(slot));
        Ok(slot)
    }

    /// Closes what the guest has let go of.
    pub fn clear_away(&self) -> Vec<Departed> {
        let clear = |fitted: Fitted| {
            let name = fitted.name().unwrap_or_default().to_owned();
            Departed { slot: fitted.slot, name, trouble: self.dispose(&fitted).err() }
        };
        self.platform.take_ejected().into_iter().map(clear).collect()
    }

    fn dispose(&self, fitted: &Fitted) -> Result<(), PlugError> {
        let thread = lock(&self.device_threads).remove(&fitted.slot);
        // Joined before anything is closed.
        drop(thread);
        let retired = fitted.device().retire();
        if let What::Disk { disk, .. } = &fitted.what {
            disk.release()?;
        }
        Ok(retired?)
    }

    /// The slots that the guest is told devices come and go in: all but those of devices that stay.
    pub(super) fn plug_slots(&self) -> PlugSlots {
        if !self.platform.is_pluggable() {
            return PlugSlots::default();
        }
        let devices = self.platform.fitted();
        let stays = |slot: &u16| devices.0.iter().any(|fitted| fitted.slot == *slot && !fitted.removable);
        (1..=PCI_SLOT_MAX).filter(|slot| !stays(slot)).collect()
    }

    fn place(&self, slot: u16) -> Place<'_> {
        Place { slot, vm: &self.vm, router: &self.router, ram: &self.ram }
    }

    fn room_for_disk(&self, spec: &DiskSpec) -> Result<u16, PlugError> {
        let devices = self.platform.fitted().clone();
        if devices.disks().count() >= DISKS_MAX {
            return Err(PlugError::Full { what: "disks", most: DISKS_MAX });
        }
        if devices.disk_specs().iter().any(|other| other.serial == spec.serial) {
            return Err(PlugError::Taken { field: "disk.serial", value: spec.serial.clone() });
        }
        self.free_slot(&devices, spec.slot)
    }

    fn room_for_nic(&self, spec: &NetSpec) -> Result<u16, PlugError> {
        let devices = self.platform.fitted().clone();
        if devices.nics().count() >= NICS_MAX {
            return Err(PlugError::Full { what: "network cards", most: NICS_MAX });
        }
        for other in devices.net_specs() {
            if other.mac == spec.mac {
                return Err(PlugError::Taken { field: "net.mac", value: spec.mac.to_string() });
            }
            if other.tap == spec.tap {
                return Err(PlugError::Taken { field: "net.tap", value: spec.tap.clone() });
            }
        }
        self.free_slot(&devices, spec.slot)
    }

    /// `devices` is a copy: an ejection under way, which [`is_ejected`](super::platform::Platform::is_ejected) waits for, changes the original.
    fn free_slot(&self, devices: &Devices, said: Option<u16>) -> Result<u16, PlugError> {
        if !self.platform.is_pluggable() {
            return Err(PlugError::Fixed);
        }
        // What the guest has let go of has its thread still, until it is cleared away.
        let taken =
            |slot: u16| devices.0.iter().any(|fitted| fitted.slot == slot) || self.platform.is_ejected(slot);
        match said {
            Some(slot) if taken(slot) => Err(PlugError::Taken { field: "slot", value: slot.to_string() }),
            Some(slot) => Ok(slot),
            None => {
                Ok((1..=PCI_SLOT_MAX).find(|slot| !taken(*slot)).expect("there are more slots than devices"))
            }
        }
    }

    /// Starts a device that has been built, and plugs it in.
    fn fit(&self, slot: u16, what: What) -> Result<u16, PlugError> {
        let lifecycle = self.lifecycle();
        let number = self.platform.fitted().free_number(|other| is_disk(other) == is_disk(&what));
        let fitted = Fitted::new(slot, number, true, what)?;
        let device = fitted.device();
        let start = |source| MachineError::Host { action: "start a device thread", source };
        let thread = DeviceThread::of(&device).map_err(start)?;
        lock(&self.device_threads).insert(slot, thread);
        if lifecycle.running {
            device.resume();
        }
        self.platform.plug(fitted);
        Ok(slot)
    }
}

fn is_disk(what: &What) -> bool {
    matches!(what, What::Disk { .. })
}

fn find(devices: &Devices, name: &str) -> Result<u16, PlugError> {
    let mut called = devices.0.iter().filter(|fitted| fitted.is_called(name));
    let Some(found) = called.next() else {
        let known: Vec<&str> = devices.0.iter().filter_map(Fitted::name).collect();
        let known = if known.is_empty() { "no disks and no cards".to_owned() } else { known.join(", ") };
        return Err(PlugError::Unknown { name: name.to_owned(), known });
    };
    if called.next().is_some() {
        return Err(PlugError::Ambiguous { name: name.to_owned() });
    }
    if found.removable { Ok(found.slot) } else { Err(PlugError::Built { name: name.to_owned() }) }
}
