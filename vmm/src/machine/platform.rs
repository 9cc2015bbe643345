//! The board: which device answers at which port, and what ends a run.

use std::sync::{Arc, Mutex, MutexGuard};

use super::events::{EventReceiver, MachineEvent};
use crate::arch::acpi::RESET_VALUE;
use crate::arch::layout::port;
use crate::devices::balloon::BalloonDevice;
use crate::devices::block::Disk;
use crate::devices::cmos::Clock;
use crate::devices::console::ConsoleDevice;
use crate::devices::keyboard::Keyboard;
use crate::devices::net::Nic;
use crate::devices::power::Power;
use crate::devices::rng::RngDevice;
use crate::devices::serial::SerialDevice;
use crate::devices::vsock::VsockDevice;
use crate::devices::watchdog::Watchdog;
use crate::irq::LevelLine;
use crate::pci::{PciFunction, PciHost};
use crate::state::Payload;
use crate::vcpu::{Bus, Exit, Gate};
use crate::virtio::VirtioDevice;

/// What the panic port can report: panicked, crash kernel loaded.
const PANIC_BITS: u8 = 0b11;

/// All devices, reachable from vCPU threads.
#[derive(Debug)]
pub(super) struct Platform {
    gate: Arc<Gate>,
    events: EventReceiver,
    halt: Mutex<Option<Halt>>,
    pub(super) serial: Mutex<SerialDevice>,
    pub(super) cmos: Mutex<Clock>,
    power: Mutex<Power>,
    /// Where the power registers interrupt.
    sci: LevelLine,
    pub(super) keyboard: Mutex<Keyboard>,
    pub(super) watchdog: Mutex<Watchdog>,
    pub(super) pci: PciHost,
    devices: Devices,
}

/// The virtio devices.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// All of them, in the order of their PCI slots.
    pub(super) all: Vec<Arc<dyn VirtioDevice>>,
    pub(super) nics: Vec<Arc<Nic>>,
    pub(super) disks: Vec<Arc<Disk>>,
    pub(super) vsock: Option<Arc<VsockDevice>>,
    pub(super) console: Option<Arc<ConsoleDevice>>,
    pub(super) rng: Option<Arc<RngDevice>>,
    pub(super) balloon: Option<Arc<BalloonDevice>>,
}

/// The devices of the board that need something of the host.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) serial: SerialDevice,
    pub(super) cmos: Clock,
    pub(super) watchdog: Watchdog,
    pub(super) sci: LevelLine,
}

/// Why vCPUs stand still although nobody paused them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Halt {
    pub(super) cause: MachineEvent,
    /// Whether the event was reported by this process; a replica that takes over reports it again.
    pub(super) reported: bool,
}

impl Platform {
    pub(super) fn new(gate: Arc<Gate>, board: Board, devices: Devices) -> Platform {
        let pci = PciHost::new();
        pci.plug(devices.all.iter().map(|device| Arc::clone(device) as Arc<dyn PciFunction>).collect());
        Platform {
            gate,
            events: EventReceiver::default(),
            halt: Mutex::new(None),
            serial: Mutex::new(board.serial),
            cmos: Mutex::new(board.cmos),
            power: Mutex::new(Power::default()),
            sci: board.sci,
            keyboard: Mutex::new(Keyboard::new()),
            watchdog: Mutex::new(board.watchdog),
            pci,
            devices,
        }
    }

    pub(super) fn events(&self) -> &EventReceiver {
        &self.events
    }

    pub(super) fn devices(&self) -> &[Arc<dyn VirtioDevice>] {
        &self.devices.all
    }

    pub(super) fn nics(&self) -> &[Arc<Nic>] {
        &self.devices.nics
    }

    pub(super) fn vsock(&self) -> Option<&Arc<VsockDevice>> {
        self.devices.vsock.as_ref()
    }

    pub(super) fn console(&self) -> Option<&Arc<ConsoleDevice>> {
        self.devices.console.as_ref()
    }

    pub(super) fn rng(&self) -> Option<&RngDevice> {
        self.devices.rng.as_deref()
    }

    pub(super) fn balloon(&self) -> Option<&BalloonDevice> {
        self.devices.balloon.as_deref()
    }

    pub(super) fn disks(&self) -> &[Arc<Disk>] {
        &self.devices.disks
    }

    pub(super) fn serial_input(&self, bytes: &[u8]) -> usize {
        lock(&self.serial).input(bytes)
    }

    /// All devices hold still when this returns.
    pub(super) fn pause(&self) {
        self.devices().iter().for_each(|device| device.pause());
        lock(&self.watchdog).pause();
        lock(&self.cmos).pause();
        lock(&self.power).pause();
    }

    /// All devices go on.
    pub(super) fn resume(&self) {
        self.with_power(Power::resume);
        lock(&self.cmos).resume();
        lock(&self.watchdog).resume();
        self.devices().iter().for_each(|device| device.resume());
    }

    /// Has `act` change the power registers; the interrupt line follows them.
    pub(super) fn with_power<T>(&self, act: impl FnOnce(&mut Power) -> T) -> T {
        let mut power = lock(&self.power);
        let result = act(&mut power);
        self.sci.set(power.interrupts());
        result
    }

    /// Writes the section of the power registers.
    pub(super) fn save_power(&self, out: &mut Payload<'_>) {
        lock(&self.power).save(out);
    }

    /// The device thread saw the watchdog's timer fire.
    pub(super) fn watchdog_fired(&self) {
        if lock(&self.watchdog).fired() {
            self.events.push(MachineEvent::WatchdogExpired);
        }
    }

    pub(super) fn halt(&self) -> MutexGuard<'_, Option<Halt>> {
        lock(&self.halt)
    }

    /// Whether vCPUs must stay parked; reports why if nobody here has heard of it.
    pub(super) fn is_halted(&self) -> bool {
        let mut halt = self.halt();
        if let Some(halt) = halt.as_mut().filter(|halt| !halt.reported) {
            halt.reported = true;
            self.events.push(halt.cause.clone());
        }
        halt.is_some()
    }

    /// Ends the run for all vCPUs. The first cause counts.
    pub(super) fn end(&self, cause: MachineEvent) {
        let mut halt = self.halt();
        if halt.is_none() {
            *halt = Some(Halt { cause: cause.clone(), reported: true });
            self.gate.close();
            self.events.push(cause);
        }
    }
}

/// Locks a device.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("device code does not panic, whatever the guest does")
}

/// Whether `number` is one of `count` ports from `first`; its offset then.
fn within(number: u16, first: u16, count: u16) -> Option<u16> {
    number.checked_sub(first).filter(|offset| *offset < count)
}

impl Bus for Platform {
    fn port_read(&self, number: u16, into: &mut [u8]) {
        if let Some(register) = within(number, port::COM1, port::COM1_LEN) {
            let mut serial = lock(&self.serial);
            let register = register.to_le_bytes()[0];
            into.iter_mut().for_each(|byte| *byte = serial.read(register));
        } else if let Some(byte) = within(number, port::PCI_DATA, 4) {
            self.pci.data_read(usize::from(byte), into);
        } else if let Some(byte) = within(number, port::PCI_ADDRESS, 4) {
            self.pci.address_read(usize::from(byte), into);
        } else if let (Some(which), [byte]) = (within(number, port::CMOS, port::CMOS_LEN), &mut *into) {
            *byte = lock(&self.cmos).read(which);
        } else if let Some(offset) = within(number, port::PM1_EVENT, port::PM1_EVENT_LEN) {
            lock(&self.power).event_read(usize::from(offset), into);
        } else if let Some(offset) = within(number, port::PM1_CONTROL, port::PM1_CONTROL_LEN) {
            lock(&self.power).control_read(usize::from(offset), into);
        } else if let (port::KEYBOARD_DATA, [byte]) = (number, &mut *into) {
            *byte = lock(&self.keyboard).data();
        } else if let (port::KEYBOARD_COMMAND, [byte]) = (number, &mut *into) {
            *byte = lock(&self.keyboard).status();
        } else if let (port::PVPANIC, [byte]) = (number, &mut *into) {
            *byte = PANIC_BITS;
        }
    }

    fn port_write(&self, number: u16, data: &[u8]) {
        if let Some(register) = within(number, port::COM1, port::COM1_LEN) {
            lock(&self.serial).write(register.to_le_bytes()[0], data);
        } else if let Some(byte) = within(number, port::PCI_DATA, 4) {
            self.pci.data_write(usize::from(byte), data);
        } else if let (port::RESET, [value]) = (number, data) {
            // The address latch is written whole; a byte written into it is the reset port.
            if value & RESET_VALUE == RESET_VALUE {
                self.end(MachineEvent::GuestReset);
            }
        } else if number == port::PCI_ADDRESS {
            self.pci.address_write(data);
        } else if let (Some(which), [value]) = (within(number, port::CMOS, port::CMOS_LEN), data) {
            lock(&self.cmos).write(which, *value);
        } else if let Some(offset) = within(number, port::PM1_EVENT, port::PM1_EVENT_LEN) {
            self.with_power(|power| power.event_write(usize::from(offset), data));
        } else if let Some(offset) = within(number, port::PM1_CONTROL, port::PM1_CONTROL_LEN) {
            let off = lock(&self.power).control_write(usize::from(offset), data);
            if off {
                self.end(MachineEvent::GuestShutdown);
            }
        } else if within(number, port::WATCHDOG, port::WATCHDOG_LEN).is_some() {
            lock(&self.watchdog).write(data);
        } else if let (port::PVPANIC, [bits]) = (number, data) {
            self.events.push(MachineEvent::GuestPanic { bits: bits & PANIC_BITS });
        } else if let (port::KEYBOARD_DATA | port::KEYBOARD_COMMAND, [byte]) = (number, data) {
            let mut keyboard = lock(&self.keyboard);
            let reset =
                if number == port::KEYBOARD_DATA { keyboard.write(*byte) } else { keyboard.command(*byte) };
            drop(keyboard);
            if reset {
                self.end(MachineEvent::GuestReset);
            }
        }
    }

    fn memory_read(&self, address: u64, into: &mut [u8]) {
        self.pci.memory_read(address, into);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.pci.memory_write(address, data);
    }

    fn ended(&self, vcpu: u8, exit: Exit) {
        self.end(match exit {
            Exit::Shutdown => MachineEvent::TripleFault { vcpu },
            Exit::Error(reason) => MachineEvent::VcpuError { vcpu, reason },
        });
    }
}
