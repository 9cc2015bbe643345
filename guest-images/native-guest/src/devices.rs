//! The devices beside the network card.

use crate::balloon::Balloon;
use crate::clock::Clock;
use crate::disk::DiskWorker;
use crate::entropy;
use crate::plug::Plug;
use crate::terminal::Terminal;
use crate::virtio::{Bus, DeviceError};
use native_guest::options::Options;
use virtio_drivers::transport::DeviceType;

/// Disk, balloon and console. Sockets are elsewhere: they serve RESP, which needs these.
#[derive(Default)]
pub(crate) struct Devices {
    pub(crate) disk: Option<DiskWorker>,
    pub(crate) balloon: Option<Balloon>,
    terminal: Option<Terminal>,
    plug: Option<Plug>,
}

impl Devices {
    /// Opens disk and balloon where there are any, and everything the command line needs.
    pub(crate) fn new(bus: &mut Bus, options: &Options) -> Result<Self, DeviceError> {
        let mut devices = Self::default();
        if !options.disk.is_empty() || bus.find(DeviceType::Block).is_some() {
            devices.disk = Some(DiskWorker::new(bus, &options.disk)?);
        }
        if bus.find(DeviceType::MemoryBalloon).is_some() {
            devices.balloon = Some(Balloon::new(bus)?);
        }
        if options.entropy {
            entropy::check(bus)?;
        }
        if options.terminal {
            devices.terminal = Some(Terminal::new(bus)?);
        }
        devices.plug = options.plug.then(|| Plug::new(bus));
        Ok(devices)
    }

    /// Follows what is plugged in and out, if it is to. Whether anything happened, and when to call again.
    pub(crate) fn follow_plug(&mut self, bus: &mut Bus, now_ns: u64) -> (bool, Option<u64>) {
        match &mut self.plug {
            Some(plug) => plug.turn(bus, &mut self.disk, now_ns),
            None => (false, None),
        }
    }

    /// Does what is due. Whether there was anything, and when the next turn must come at the latest.
    pub(crate) fn turn(&mut self, clock: &mut Clock, now_ns: u64) -> (bool, Option<u64>) {
        let (mut active, mut deadline) = (false, None);
        if let Some(disk) = &mut self.disk {
            active |= disk.turn(clock);
        }
        if let Some(terminal) = &mut self.terminal {
            active |= terminal.turn();
        }
        if let Some(balloon) = &mut self.balloon {
            let (moved, at) = balloon.turn(now_ns);
            active |= moved;
            deadline = at;
        }
        (active, deadline)
    }

    /// Switches interrupts on for a sleep. Whether sleeping is right: nothing has come in meanwhile.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        let disk = self.disk.as_mut().is_none_or(DiskWorker::prepare_sleep);
        let balloon = self.balloon.as_mut().is_none_or(Balloon::prepare_sleep);
        disk && balloon
    }

    /// Switches interrupts off again.
    pub(crate) fn end_sleep(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.end_sleep();
        }
        if let Some(balloon) = &mut self.balloon {
            balloon.end_sleep();
        }
    }
}
