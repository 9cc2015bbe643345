//! The board: which device answers at which port, and what ends a run.

use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::events::{EventReceiver, MachineEvent};
use super::fitted::{Devices, Fitted, What};
use crate::arch::acpi::RESET_VALUE;
use crate::arch::layout::port;
use crate::devices::balloon::BalloonDevice;
use crate::devices::block::Disk;
use crate::devices::cmos::Clock;
use crate::devices::console::ConsoleDevice;
use crate::devices::hotplug::Hotplug;
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
    acpi: Mutex<Acpi>,
    /// Where these interrupt.
    sci: LevelLine,
    pub(super) keyboard: Mutex<Keyboard>,
    pub(super) watchdog: Mutex<Watchdog>,
    pub(super) pci: PciHost,
    /// Changed by those who plug, and by a guest that lets go of a device.
    devices: RwLock<Devices>,
    /// What the guest has let go of, holding still, until somebody clears it away.
    ejected: Mutex<Vec<Fitted>>,
    /// Devices can come and go.
    pluggable: bool,
}

/// What interrupts by ACPI's line.
#[derive(Debug, Default)]
pub(super) struct Acpi {
    pub(super) power: Power,
    pub(super) hotplug: Hotplug,
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
    pub(super) fn new(gate: Arc<Gate>, board: Board, devices: Devices, pluggable: bool) -> Platform {
        let pci = PciHost::new();
        for fitted in &devices.0 {
            pci.plug(fitted.slot, Some(fitted.device() as Arc<dyn PciFunction>));
        }
        Platform {
            gate,
            events: EventReceiver::default(),
            halt: Mutex::new(None),
            serial: Mutex::new(board.serial),
            cmos: Mutex::new(board.cmos),
            acpi: Mutex::default(),
            sci: board.sci,
            keyboard: Mutex::new(Keyboard::new()),
            watchdog: Mutex::new(board.watchdog),
            pci,
            devices: RwLock::new(devices),
            ejected: Mutex::default(),
            pluggable,
        }
    }

    /// Whether devices can come and go.
    pub(super) fn is_pluggable(&self) -> bool {
        self.pluggable
    }

    pub(super) fn events(&self) -> &EventReceiver {
        &self.events
    }

    /// What is in the slots; hold it for a moment only.
    pub(super) fn fitted(&self) -> RwLockReadGuard<'_, Devices> {
        self.devices.read().expect("no holder of the devices panics")
    }

    fn fitted_mut(&self) -> RwLockWriteGuard<'_, Devices> {
        self.devices.write().expect("no holder of the devices panics")
    }

    pub(super) fn devices(&self) -> Vec<Arc<dyn VirtioDevice>> {
        self.fitted().all()
    }

    pub(super) fn nics(&self) -> Vec<Arc<Nic>> {
        self.fitted().nics().map(|(_, nic)| Arc::clone(nic)).collect()
    }

    pub(super) fn nic(&self, number: usize) -> Option<Arc<Nic>> {
        self.fitted().nics().nth(number).map(|(_, nic)| Arc::clone(nic))
    }

    pub(super) fn vsock(&self) -> Option<Arc<VsockDevice>> {
        self.fitted().only(|what| if let What::Vsock(device) = what { Some(device) } else { None })
    }

    pub(super) fn console(&self) -> Option<Arc<ConsoleDevice>> {
        self.fitted().only(|what| if let What::Console(device) = what { Some(device) } else { None })
    }

    pub(super) fn rng(&self) -> Option<Arc<RngDevice>> {
        self.fitted().only(|what| if let What::Rng(device) = what { Some(device) } else { None })
    }

    pub(super) fn balloon(&self) -> Option<Arc<BalloonDevice>> {
        self.fitted().only(|what| if let What::Balloon(device) = what { Some(device) } else { None })
    }

    pub(super) fn disks(&self) -> Vec<Arc<Disk>> {
        self.fitted().disks().map(|(_, disk)| Arc::clone(disk)).collect()
    }

    /// Puts a device into its empty slot, and tells the guest.
    pub(super) fn plug(&self, fitted: Fitted) {
        let slot = fitted.slot;
        self.pci.plug(slot, Some(fitted.device() as Arc<dyn PciFunction>));
        self.fitted_mut().0.push(fitted);
        self.with_acpi(|acpi| acpi.hotplug.plugged(slot));
    }

    /// The guest has let go of what is in `slot`, on its own or when it was asked to. From here on the device does nothing;
    /// its files are closed when it is cleared away.
    fn eject(&self, slot: u16) {
        // Held to the end: until it is among the ejected, nobody finds the slot free.
        let mut ejected = lock(&self.ejected);
        let taken = {
            let devices = &mut self.fitted_mut().0;
            let place = devices.iter().position(|fitted| fitted.slot == slot && fitted.removable);
            place.map(|place| devices.remove(place))
        };
        let Some(fitted) = taken else { return };
        self.pci.plug(slot, None);
        fitted.device().pause();
        ejected.push(fitted);
        self.with_acpi(|acpi| acpi.hotplug.gone(slot));
        self.events.push(MachineEvent::Ejected { slot });
    }

    /// Whether what was in `slot` has not been cleared away yet.
    pub(super) fn is_ejected(&self, slot: u16) -> bool {
        lock(&self.ejected).iter().any(|fitted| fitted.slot == slot)
    }

    /// What the guest has let go of since the last call.
    pub(super) fn take_ejected(&self) -> Vec<Fitted> {
        std::mem::take(&mut *lock(&self.ejected))
    }

    pub(super) fn serial_input(&self, bytes: &[u8]) -> usize {
        lock(&self.serial).input(bytes)
    }

    /// All devices hold still when this returns.
    pub(super) fn pause(&self) {
        self.devices().iter().for_each(|device| device.pause());
        lock(&self.watchdog).pause();
        lock(&self.cmos).pause();
        lock(&self.acpi).power.pause();
    }

    /// All devices go on.
    pub(super) fn resume(&self) {
        self.with_acpi(|acpi| acpi.power.resume());
        lock(&self.cmos).resume();
        lock(&self.watchdog).resume();
        self.devices().iter().for_each(|device| device.resume());
    }

    /// Has `act` change ACPI's registers; the interrupt line follows them.
    pub(super) fn with_acpi<T>(&self, act: impl FnOnce(&mut Acpi) -> T) -> T {
        let mut acpi = lock(&self.acpi);
        let result = act(&mut acpi);
        self.sci.set(acpi.power.interrupts() || acpi.hotplug.interrupts());
        result
    }

    /// Writes the section of the power registers.
    pub(super) fn save_power(&self, out: &mut Payload<'_>) {
        lock(&self.acpi).power.save(out);
    }

    /// Writes the section of the registers by which devices come and go.
    pub(super) fn save_hotplug(&self, out: &mut Payload<'_>) {
        lock(&self.acpi).hotplug.save(out);
    }

    /// A read of the registers that are there if devices can come and go.
    fn plug_read(&self, number: u16, into: &mut [u8]) {
        let acpi = lock(&self.acpi);
        if let Some(offset) = within(number, port::GPE0, port::GPE0_LEN) {
            acpi.hotplug.gpe_read(usize::from(offset), into);
        } else if let Some(offset) = within(number, port::HOTPLUG, port::HOTPLUG_LEN) {
            acpi.hotplug.read(usize::from(offset), into);
        }
    }

    /// A write to them.
    fn plug_write(&self, number: u16, data: &[u8]) {
        if let Some(offset) = within(number, port::GPE0, port::GPE0_LEN) {
            self.with_acpi(|acpi| acpi.hotplug.gpe_write(usize::from(offset), data));
        } else if let Some(offset) = within(number, port::HOTPLUG, port::HOTPLUG_LEN) {
            let ejected = self.with_acpi(|acpi| acpi.hotplug.write(usize::from(offset), data));
            ejected.for_each(|slot| self.eject(slot));
        }
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
            lock(&self.acpi).power.event_read(usize::from(offset), into);
        } else if let Some(offset) = within(number, port::PM1_CONTROL, port::PM1_CONTROL_LEN) {
            lock(&self.acpi).power.control_read(usize::from(offset), into);
        } else if let (port::KEYBOARD_DATA, [byte]) = (number, &mut *into) {
            *byte = lock(&self.keyboard).data();
        } else if let (port::KEYBOARD_COMMAND, [byte]) = (number, &mut *into) {
            *byte = lock(&self.keyboard).status();
        } else if let (port::PVPANIC, [byte]) = (number, &mut *into) {
            *byte = PANIC_BITS;
        } else if self.pluggable {
            self.plug_read(number, into);
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
            self.with_acpi(|acpi| acpi.power.event_write(usize::from(offset), data));
        } else if let Some(offset) = within(number, port::PM1_CONTROL, port::PM1_CONTROL_LEN) {
            let off = lock(&self.acpi).power.control_write(usize::from(offset), data);
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
        } else if self.pluggable {
            self.plug_write(number, data);
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
