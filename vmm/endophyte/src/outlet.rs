//! The doors of a protected VM: what the guest says goes to the gate, what the gate lets out goes to the world.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use endophyte_vmm::devices::block::DiskPort;
use endophyte_vmm::devices::console::{ConsolePort, Terminal};
use endophyte_vmm::devices::net::{NetPort, Tap, Transmit, frame_of};
use endophyte_vmm::devices::serial::SerialPort;
use endophyte_vmm::devices::vsock::{Deed, VsockPort};
use endophyte_vmm::machine::Machine;
use mycelium_ram::active::Inbox;
use mycelium_ram::disk_log::DiskLog;
use mycelium_ram::gate::{Gate, Offer};
use mycelium_ram::ingress::IngressTap;
use mycelium_ram::ports::OutputPort;
use mycelium_ram_core::disk::DiskChange;
use mycelium_ram_core::message::{Output, Port};

use crate::announce::Announcer;
use crate::console::Tape;

/// Where released output goes.
#[derive(Debug)]
pub(crate) struct Outlet {
    taps: Vec<Arc<Tap>>,
    terminals: Vec<Arc<Terminal>>,
    tape: Arc<Tape>,
    notices: Mutex<Sender<String>>,
    machine: OnceLock<Weak<Machine>>,
}

impl Outlet {
    pub(crate) fn new(
        taps: Vec<Arc<Tap>>,
        terminals: Vec<Arc<Terminal>>,
        tape: Arc<Tape>,
        notices: Sender<String>,
    ) -> Self {
        Self { taps, terminals, tape, notices: Mutex::new(notices), machine: OnceLock::new() }
    }

    /// Tells the outlet whose devices wait for room.
    pub(crate) fn attach(&self, machine: &Arc<Machine>) {
        let _ = self.machine.set(Arc::downgrade(machine));
    }
}

impl OutputPort for Outlet {
    fn emit(&self, output: &Output) {
        match output.port {
            Port::Net(nic) => {
                if let Some(tap) = self.taps.get(usize::from(nic)) {
                    // A tap that is down or full drops the frame, like a cable.
                    let pair = u16::try_from(output.offset).unwrap_or(0);
                    let _ = tap.write(pair, &output.data);
                }
            }
            Port::Serial => self.tape.record(output.offset, &output.data),
            Port::Console(number) => {
                if let Some(terminal) = self.terminals.get(usize::from(number)) {
                    terminal.show(&output.data);
                }
            }
            Port::Notice => {
                let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = notices.send(String::from_utf8_lossy(&output.data).into_owned());
            }
        }
    }

    fn room(&self) {
        if let Some(machine) = self.machine.get().and_then(Weak::upgrade) {
            (0..self.taps.len()).for_each(|nic| machine.kick_tx(nic));
            machine.kick_vsock();
            machine.kick_console();
        }
    }
}

/// The gate with the bell that wakes the protocol thread.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) gate: Arc<Gate>,
    bell: Arc<Mutex<Option<Sender<Inbox>>>>,
}

impl Door {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self { gate, bell: Arc::default() }
    }

    /// Output that begins to wait is reported here.
    pub(crate) fn ring_at(&self, inbox: Sender<Inbox>) {
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = Some(inbox);
    }

    pub(crate) fn offer(&self, port: Port, offset: u64, data: &[u8]) -> Offer {
        self.report(self.gate.offer(port, offset, data))
    }

    fn report(&self, (offer, first): (Offer, bool)) -> Offer {
        if first && let Some(inbox) = &*self.bell.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = inbox.send(Inbox::OutputPending);
        }
        offer
    }
}

/// One network card's door.
pub(crate) struct NicDoor {
    pub(crate) nic: u8,
    pub(crate) mac: [u8; 6],
    pub(crate) door: Door,
    pub(crate) ingress: Arc<IngressTap>,
    pub(crate) announcer: Arc<Announcer>,
}

impl NetPort for NicDoor {
    fn transmit(&self, pair: u16, packet: &[u8]) -> Transmit {
        match self.door.offer(Port::Net(self.nic), u64::from(pair), packet) {
            Offer::Taken => Transmit::Taken,
            Offer::Full => Transmit::Full,
        }
    }

    fn deliver(&self, packet: &[u8]) {
        // A frame from our own address: a stale active spoke, and switches now believe it.
        if frame_of(packet).get(6..12) == Some(&self.mac[..]) {
            self.announcer.again();
        }
        self.ingress.deliver(self.nic, packet);
    }
}

/// The socket device's door: connections are made and fed when the epoch in which the guest did so is committed.
#[derive(Debug)]
pub(crate) struct VsockDoor(pub(crate) Door);

impl VsockPort for VsockDoor {
    fn offer(&self, deed: Deed) -> Transmit {
        let Self(door) = self;
        match door.report(door.gate.offer_deed(deed.weight(), Box::new(move || deed.carry_out()))) {
            Offer::Taken => Transmit::Taken,
            Offer::Full => Transmit::Full,
        }
    }
}

/// The door of one port of the paravirtual console. It has no offsets: after a takeover its clients are new ones, of
/// another node's socket, and get what the last committed epoch said, perhaps again.
#[derive(Debug)]
pub(crate) struct ConsoleDoor {
    pub(crate) number: u8,
    pub(crate) door: Door,
}

impl ConsolePort for ConsoleDoor {
    fn write(&self, bytes: &[u8]) -> Transmit {
        match self.door.offer(Port::Console(self.number), 0, bytes) {
            Offer::Taken => Transmit::Taken,
            Offer::Full => Transmit::Full,
        }
    }
}

/// The console's door. Offsets count every byte the guest ever wrote, through takeovers.
pub(crate) struct SerialDoor {
    door: Door,
    written: Arc<AtomicU64>,
    said_lost: AtomicBool,
}

impl SerialDoor {
    pub(crate) fn new(door: Door, written: Arc<AtomicU64>) -> Self {
        Self { door, written, said_lost: AtomicBool::new(false) }
    }
}

impl SerialPort for SerialDoor {
    fn write(&self, bytes: &[u8]) {
        let offset = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // The caller is a vCPU that must stay stoppable, so it cannot wait for room; a UART's overrun loses bytes too.
        if self.door.offer(Port::Serial, offset, bytes) == Offer::Full
            && !self.said_lost.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(offset, "the output gate is full: console bytes are lost until a replica answers");
        }
    }
}

/// What the guest does to its disks leaves by the log.
#[derive(Debug)]
pub(crate) struct DiskDoor(pub(crate) Arc<DiskLog>);

impl DiskPort for DiskDoor {
    fn is_on(&self) -> bool {
        self.0.is_on()
    }

    fn has_room(&self) -> bool {
        self.0.has_room()
    }

    fn note(&self, change: DiskChange) {
        self.0.note(change);
    }
}

/// A line for the operator on standard output, besides the log; plain text, best effort.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
