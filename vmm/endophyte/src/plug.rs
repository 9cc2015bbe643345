//! Devices that come and go by order of the API.

use std::sync::Arc;

use endophyte_api::{AttachResponse, DetachResponse};
use endophyte_vmm::devices::block::ImageError;
use endophyte_vmm::devices::net::{NicPort, Tap, TapPort};
use endophyte_vmm::machine::{Departed, Machine, PlugError};
use endophyte_vmm::spec::{DeviceTable, DiskSpec};
use tokio::sync::oneshot::Sender;
use tonic::Status;

use crate::confine;
use crate::desk::Desk;
use crate::limits::DETACHING_MAX;

/// What is to be done, and who hears of it.
#[derive(Debug)]
pub(crate) enum Plug {
    /// Put in a disk, by its table.
    Disk(String, Sender<Result<AttachResponse, Status>>),
    /// Put in a card, by its table.
    Net(String, Sender<Result<AttachResponse, Status>>),
    /// Have the guest let go of the device of that name.
    Out(String, Sender<Result<DetachResponse, Status>>),
}

impl Plug {
    /// Nothing is done, and this is why.
    pub(crate) fn refuse(self, status: Status) {
        // Somebody who does not listen any more needs no answer.
        match self {
            Plug::Disk(_, tell) | Plug::Net(_, tell) => drop(tell.send(Err(status))),
            Plug::Out(_, tell) => drop(tell.send(Err(status))),
        }
    }
}

/// Carries such orders out, in the thread that keeps the machine: nothing else pauses or saves it meanwhile.
#[derive(Debug)]
pub(crate) struct Plugs {
    machine: Arc<Machine>,
    desk: Arc<Desk>,
    /// Slots the guest has been asked to empty, and who waits for it.
    leaving: Vec<(u16, Sender<Result<DetachResponse, Status>>)>,
}

impl Plugs {
    pub(crate) fn new(machine: &Arc<Machine>, desk: &Arc<Desk>) -> Self {
        Self { machine: machine.clone(), desk: desk.clone(), leaving: Vec::new() }
    }

    /// Does what is asked, or begins to.
    pub(crate) fn carry_out(&mut self, plug: Plug) {
        match plug {
            Plug::Disk(table, tell) => drop(tell.send(self.attach_disk(&table))),
            Plug::Net(table, tell) => drop(tell.send(self.attach_net(&table))),
            Plug::Out(name, tell) => self.detach(&name, tell),
        }
        self.show();
    }

    /// The guest has let go of something.
    pub(crate) fn ejected(&mut self) {
        for Departed { slot, name, trouble } in self.machine.clear_away() {
            tracing::info!(slot, %name, "a device is gone");
            if let Some(trouble) = &trouble {
                tracing::error!(slot, %name, %trouble, "a device did not go well");
                let said = format!("device {name}: {trouble}");
                self.desk.board.send_modify(|s| s.last_trouble = Some(said.clone()));
            }
            for (_, tell) in self.leaving.extract_if(.., |(waited, _)| *waited == slot) {
                let end = match &trouble {
                    None => Ok(DetachResponse { slot: slot.into() }),
                    Some(trouble) => Err(Status::data_loss(trouble.to_string())),
                };
                let _ = tell.send(end);
            }
        }
        self.show();
    }

    /// Whoever watches sees other devices.
    fn show(&self) {
        self.desk.board.send_modify(|_| ());
    }

    fn attach_disk(&self, table: &str) -> Result<AttachResponse, Status> {
        let vcpus = self.machine.spec().vcpus;
        let disk = DeviceTable::Disk(table).disk(vcpus, self.machine.next_disk_number());
        let disk = disk.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let slot = self.machine.attach_disk(&disk).map_err(|error| status_of(&error, Some(&disk)))?;
        Ok(AttachResponse { name: disk.serial, slot: slot.into() })
    }

    fn attach_net(&self, table: &str) -> Result<AttachResponse, Status> {
        let card = DeviceTable::Net(table).card();
        let card = card.map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Some(why) = confine::taps_out_of_reach(&card.tap) {
            return Err(Status::permission_denied(why));
        }
        let tap = Tap::open(&card).map_err(|error| Status::failed_precondition(error.to_string()))?;
        let tap = Arc::new(tap);
        let port = NicPort { port: Arc::new(TapPort::new(tap.clone())), tap };
        let slot = self.machine.attach_nic(&card, port).map_err(|error| status_of(&error, None))?;
        Ok(AttachResponse { name: card.tap, slot: slot.into() })
    }

    fn detach(&mut self, name: &str, tell: Sender<Result<DetachResponse, Status>>) {
        self.leaving.retain(|(_, waiting)| !waiting.is_closed());
        let asked = if self.leaving.len() < DETACHING_MAX {
            self.machine.ask_to_detach(name).map_err(|error| status_of(&error, None))
        } else {
            Err(Status::resource_exhausted(format!("{DETACHING_MAX} requests to detach wait already")))
        };
        match asked {
            Ok(slot) => self.leaving.push((slot, tell)),
            Err(status) => drop(tell.send(Err(status))),
        }
    }
}

fn status_of(error: &PlugError, disk: Option<&DiskSpec>) -> Status {
    if let (PlugError::Disk(ImageError::Open { source, .. }), Some(disk)) = (error, disk)
        && let Some(why) = confine::out_of_reach(&disk.path, source)
    {
        return Status::permission_denied(why);
    }
    let said = error.to_string();
    match error {
        PlugError::Unknown { .. } => Status::not_found(said),
        PlugError::Taken { .. } | PlugError::Ambiguous { .. } => Status::invalid_argument(said),
        PlugError::Full { .. } => Status::resource_exhausted(said),
        PlugError::Fixed | PlugError::Built { .. } | PlugError::Disk(_) => Status::failed_precondition(said),
        PlugError::Kvm(_) | PlugError::Machine(_) => Status::internal(said),
    }
}
