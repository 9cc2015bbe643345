//! The machine as the replication driver sees it, and the machine with its doors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use endophyte_vmm::devices::console::{ConsoleLink, Terminal};
use endophyte_vmm::devices::net::{NicPort, Tap};
use endophyte_vmm::devices::vsock::VsockLink;
use endophyte_vmm::machine::{Machine, MachineEvent, MachinePorts, RestoreOptions};
use endophyte_vmm::spec::{ConsoleSpec, VmSpec};
use mycelium_ram::disk_log::DiskLog;
use mycelium_ram::gate::Gate;
use mycelium_ram::ingress::IngressTap;
use mycelium_ram::ports::{ActiveMachine, DiskReader, PassiveMachine, PortError};
use mycelium_ram_core::disk::DiskChange;
use mycelium_ram_core::message::Port;
use mycelium_ram_core::page_codec::Change;
use mycelium_ram_core::{EpochId, PageIndex, PageSet};

use crate::announce::Announcer;
use crate::console::Tape;
use crate::outlet::{ConsoleDoor, DiskDoor, Door, NicDoor, Outlet, SerialDoor, VsockDoor};

/// Bytes after the machine's state in an epoch: the console's offset.
const SUFFIX: usize = 8;

/// A machine and everything that leads in and out of it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) machine: Arc<Machine>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) door: Door,
    pub(crate) ingress: Arc<IngressTap>,
    pub(crate) disks: Arc<DiskLog>,
    pub(crate) announcer: Arc<Announcer>,
    /// What the guest did to itself, once committed.
    pub(crate) notices: Receiver<String>,
    serial_written: Arc<AtomicU64>,
}

impl Guest {
    /// Builds the machine, parked, on open taps, with its gate in place.
    pub(crate) fn build(spec: &VmSpec, taps: Vec<Arc<Tap>>, tape: Arc<Tape>) -> Result<Self> {
        let terminal = |spec: &ConsoleSpec| Ok(Arc::new(Terminal::bind(&spec.socket)?));
        let terminals = spec.devices.consoles.iter().map(terminal).collect::<Result<Vec<_>>>()?;
        let (tell, notices) = channel();
        let outlet = Arc::new(Outlet::new(taps.clone(), terminals.clone(), tape, tell));
        let door = Door::new(Arc::new(Gate::new(outlet.clone(), EpochId(1))));
        let ingress = IngressTap::start().context("cannot start the ingress thread")?;
        let disks = Arc::new(DiskLog::default());
        let macs: Vec<[u8; 6]> = spec.net.iter().map(|n| n.mac.0).collect();
        let announcer = Announcer::new(macs.iter().copied().zip(taps.iter().cloned()).collect());
        let serial_written = Arc::new(AtomicU64::new(0));
        let nic = |(nic, (mac, tap)): (u8, ([u8; 6], Arc<Tap>))| NicPort {
            tap,
            port: Arc::new(NicDoor {
                nic,
                mac,
                door: door.clone(),
                ingress: ingress.clone(),
                announcer: announcer.clone(),
            }),
        };
        let vsock = |spec| VsockLink::bind(spec, Arc::new(VsockDoor(door.clone())));
        let console = |(number, terminal)| ConsoleLink {
            terminal,
            port: Arc::new(ConsoleDoor { number, door: door.clone() }),
        };
        let ports = MachinePorts {
            net: (0..).zip(macs.into_iter().zip(taps)).map(nic).collect(),
            serial: Arc::new(SerialDoor::new(door.clone(), serial_written.clone())),
            vsock: spec.devices.vsock.as_ref().map(vsock).transpose()?,
            consoles: (0..).zip(terminals).map(console).collect(),
            disks: Some(Arc::new(DiskDoor(disks.clone()))),
        };
        let machine = Arc::new(Machine::build_fixed(spec, ports)?);
        outlet.attach(&machine);
        Ok(Self { machine, outlet, door, ingress, disks, announcer, notices, serial_written })
    }

    /// The machine as the driver sees it.
    pub(crate) fn port(&self) -> MachinePort {
        MachinePort { machine: self.machine.clone(), serial_written: self.serial_written.clone() }
    }

    /// Sets the parked machine to the state at the end of an epoch.
    pub(crate) fn restore(&self, state: &[u8], elapsed: Duration) -> Result<()> {
        let (state, written) = state.split_last_chunk::<SUFFIX>().context("the state is too short")?;
        self.serial_written.store(u64::from_le_bytes(*written), Ordering::Relaxed);
        self.machine.restore_state(state, RestoreOptions { elapsed })?;
        Ok(())
    }

    /// Passes the machine's own events through the gate, from a thread that ends with the process.
    pub(crate) fn gate_events(&self) -> Result<()> {
        let (events, door) = (self.machine.events().clone(), self.door.clone());
        let gate = move || {
            loop {
                if let Some(event) = events.recv_timeout(Duration::from_secs(3600)) {
                    door.offer(Port::Notice, 0, notice(&event).as_bytes());
                }
            }
        };
        std::thread::Builder::new().name("notices".into()).spawn(gate).context("cannot start a thread")?;
        Ok(())
    }
}

/// The word for an event, as it passes the gate.
fn notice(event: &MachineEvent) -> String {
    match event {
        MachineEvent::GuestShutdown => "power-off".to_owned(),
        MachineEvent::GuestReset => "reset".to_owned(),
        MachineEvent::GuestPanic { .. } => "panic".to_owned(),
        MachineEvent::TripleFault { .. } => "triple-fault".to_owned(),
        MachineEvent::WatchdogExpired => "watchdog".to_owned(),
        // Not of a machine whose devices never change.
        MachineEvent::Ejected { slot } => format!("ejected {slot}"),
        MachineEvent::VcpuError { vcpu, reason } => format!("vcpu-error {vcpu}: {reason}"),
        MachineEvent::MemoryLost { reason } => format!("memory-lost: {reason}"),
    }
}

/// The machine, shared with the driver's threads.
#[derive(Clone, Debug)]
pub(crate) struct MachinePort {
    machine: Arc<Machine>,
    serial_written: Arc<AtomicU64>,
}

fn port_error<E: Into<anyhow::Error>>(doing: &'static str) -> impl FnOnce(E) -> PortError {
    move |error| PortError::new(doing, format!("{:#}", error.into()))
}

impl ActiveMachine for MachinePort {
    fn pages(&self) -> u64 {
        self.machine.ram().page_count()
    }

    fn start_tracking(&mut self) -> Result<(), PortError> {
        self.machine.start_dirty_tracking().map_err(port_error("cannot start tracking dirty pages"))
    }

    fn stop_tracking(&mut self) -> Result<(), PortError> {
        self.machine.stop_dirty_tracking().map_err(port_error("cannot stop tracking dirty pages"))
    }

    fn disks(&self) -> Vec<u64> {
        self.machine.followed_disks()
    }

    fn disk_reader(&self) -> Arc<dyn DiskReader> {
        Arc::new(self.clone())
    }

    fn kick_disks(&self) {
        self.machine.kick_disks();
    }

    fn pause(&mut self) -> Result<(), PortError> {
        self.machine.pause().map(drop).map_err(port_error("cannot pause the guest"))
    }

    fn busy(&self) -> Duration {
        self.machine.vcpu_time()
    }

    fn resume(&mut self) {
        if let Err(error) = self.machine.resume() {
            tracing::error!(%error, "the guest cannot be resumed");
        }
    }

    fn forward_input(&mut self, forward: bool) {
        self.machine.set_rx_ahead(forward);
    }

    fn harvest(&mut self, into: &mut PageSet, open: &PageSet) -> Result<(), PortError> {
        self.machine.take_dirty_but_leave_open(into, open).map_err(port_error("cannot read the dirty log"))
    }

    fn dirty_pages(&mut self) -> Result<u64, PortError> {
        self.machine.dirty_pages().map_err(port_error("cannot read the dirty log"))
    }

    fn read_page(&self, page: PageIndex, into: &mut [u8; 4096]) {
        self.machine.ram().read_page(page, into).expect("the driver asks for pages of this guest only");
    }

    fn reset(&mut self) -> Result<(), PortError> {
        self.machine.reset().map_err(port_error("cannot reset the guest"))
    }

    fn save_state(&mut self, into: &mut Vec<u8>) -> Result<(), PortError> {
        self.machine.save_state(into).map_err(port_error("cannot save the machine's state"))?;
        into.extend(self.serial_written.load(Ordering::Relaxed).to_le_bytes());
        Ok(())
    }
}

impl DiskReader for MachinePort {
    fn read(&self, disk: u8, offset: u64, into: &mut [u8]) -> Result<(), PortError> {
        self.machine.read_disk(disk, offset, into).map_err(port_error("cannot read a disk for the replica"))
    }
}

impl PassiveMachine for MachinePort {
    fn pages(&self) -> u64 {
        self.machine.ram().page_count()
    }

    fn change_page(&mut self, page: PageIndex, change: Change<'_>) {
        let ram = self.machine.ram();
        match change {
            Change::Zero => ram.write_page(page, &[0; 4096]),
            Change::Whole(content) => ram.write_page(page, content),
            Change::Runs(runs) => runs.iter().try_for_each(|(at, run)| ram.write_part(page, at, run)),
        }
        .expect("staging has checked the page's number and the runs");
    }

    fn disks(&self) -> Vec<u64> {
        self.machine.followed_disks()
    }

    fn promise(&mut self, epoch: EpochId, changes: &[DiskChange]) -> Result<(), PortError> {
        self.machine.promise_changes(epoch.0, changes).map_err(port_error("cannot write a disk's journal"))
    }

    fn made_through(&mut self, epoch: EpochId) {
        self.machine.made_through(epoch.0);
    }

    fn forget_after(&mut self, epoch: EpochId) -> Result<(), PortError> {
        self.machine.forget_promises_after(epoch.0).map_err(port_error("cannot cut a disk's journal"))
    }

    fn change_disk(&mut self, change: &DiskChange) -> Result<(), PortError> {
        self.machine.change_disk(change).map_err(port_error("cannot write to the replica's disk"))
    }
}
