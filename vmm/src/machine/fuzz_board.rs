//! A whole board against scripts of a fuzzer: its buses as a vCPU reaches them, and states to be restored.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::LocalKey;

use super::fuzz::{Bench, disk};
use super::platform::Platform;
use super::{Machine, RestoreOptions};
use crate::arch::layout::{self, port};
use crate::memory::Gpa;
use crate::spec::{ConsoleSpec, DeviceSpecs};
use crate::vcpu::Bus;
use crate::virtio::VirtioDevice;
use crate::virtio::fuzz::Reader;

/// Steps of one script; the rest is not looked at.
const STEPS_MAX: usize = 128;
/// Bytes of an access by a string instruction.
const STRING_BYTES_MAX: usize = 64;
/// Nothing is built into it.
const EMPTY_SLOT: u8 = 9;
const CONFIG_ENABLE: u32 = 1 << 31;
const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const BAR0: u8 = 0x10;
const BAR_BYTES: u64 = 0x8000;
const CAPABILITIES: u8 = 0x34;
/// Capabilities take at least four bytes of what follows the header.
const CAPABILITIES_MAX: usize = (256 - 64) / 4;

thread_local! {
    static BOARD: RefCell<Option<Bench>> = RefCell::new(build());
}

fn build() -> Option<Bench> {
    Bench::build("board", 0, true, |folder| {
        let console = ConsoleSpec { name: "hvc".to_owned(), socket: folder.join("hvc") };
        let (disks, consoles) = (vec![disk(folder)], vec![console]);
        DeviceSpecs { disks, consoles, rng: true, balloon: true, ..DeviceSpecs::default() }
    })
}

/// Runs `act` on a board as it was built; without KVM nothing is done. A script that ejects a device leaves a new board
/// behind.
fn on_board(board: &'static LocalKey<RefCell<Option<Bench>>>, act: impl FnOnce(&Machine, &[u8])) {
    board.with_borrow_mut(|place| {
        let Some(bench) = place else { return };
        let machine = &bench.rig.machine;
        machine.platform.pause();
        machine.restore_state(&bench.fresh, RestoreOptions::default()).expect("its own state");
        act(machine, &bench.fresh);
        while machine.events().try_recv().is_some() {}
        if !machine.clear_away().is_empty() {
            *place = None;
            *place = build();
        }
    });
}

/// The buses during one script.
struct Script<'a> {
    machine: &'a Machine,
    bus: &'a Platform,
    reader: Reader<'a>,
    running: bool,
    /// Of the devices it began with.
    slots: Vec<u8>,
}

impl<'a> Script<'a> {
    fn new(machine: &'a Machine, data: &'a [u8]) -> Script<'a> {
        let slot = |device: &Arc<dyn VirtioDevice>| device.section().1.to_le_bytes()[0];
        let slots = machine.devices().iter().map(slot).collect();
        Script { machine, bus: &machine.platform, reader: Reader(data), running: false, slots }
    }

    /// Takes steps until the script ends; the machine holds still then.
    fn run(mut self, step: impl Fn(&mut Script<'_>)) {
        for _ in 0..STEPS_MAX {
            if self.reader.0.is_empty() {
                break;
            }
            step(&mut self);
        }
        self.run_devices(false);
    }

    fn run_devices(&mut self, run: bool) {
        match (self.running, run) {
            (true, false) => self.bus.pause(),
            (false, true) => self.bus.resume(),
            _ => {}
        }
        self.running = run;
    }

    /// Whatever a guest does to a board, its state can be restored.
    fn save_and_restore(&mut self) {
        self.run_devices(false);
        let mut state = Vec::new();
        self.machine.save_state(&mut state).expect("a machine that stands still can be saved");
        self.machine
            .restore_state(&state, RestoreOptions::default())
            .expect("what was saved can be restored");
    }

    fn read(&self, number: u16, width: usize) -> u32 {
        let mut bytes = [0xff; 4];
        self.bus.port_read(number, &mut bytes[..width]);
        u32::from_le_bytes(bytes)
    }

    fn select(&self, slot: u8, register: u8) {
        let latch = CONFIG_ENABLE | u32::from(slot & 0x1f) << 11 | u32::from(register & 0xfc);
        self.bus.port_write(port::PCI_ADDRESS, &latch.to_le_bytes());
    }

    fn config(&self, slot: u8, register: u8) -> u32 {
        self.select(slot, register);
        self.read(port::PCI_DATA, 4)
    }

    fn set_config(&self, slot: u8, register: u8, value: u32) {
        self.select(slot, register);
        self.bus.port_write(port::PCI_DATA, &value.to_le_bytes());
    }

    /// The bridge's slot, a device's, or an empty one.
    fn slot(&mut self) -> u8 {
        match usize::from(self.reader.u8()) % (self.slots.len() + 2) {
            0 => 0,
            number => self.slots.get(number - 1).copied().unwrap_or(EMPTY_SLOT),
        }
    }
}

/// Drives configuration space and the registers behind it by the script `data`.
pub fn fuzz_pci(data: &[u8]) {
    on_board(&BOARD, |machine, _| {
        let script = Script::new(machine, data);
        let identities: Vec<u32> = script.slots.iter().map(|slot| script.config(*slot, 0)).collect();
        script.run(|script| {
            pci_step(script);
            check_functions(script, &identities);
        });
    });
}

fn pci_step(script: &mut Script<'_>) {
    match script.reader.u8() % 10 {
        0 => {
            let (slot, register, width) = (script.slot(), script.reader.u8(), script.reader.width().min(4));
            script.select(slot, register);
            script.read(port::PCI_DATA + u16::from(register & 3), width);
        }
        1 => {
            let (slot, register, width) = (script.slot(), script.reader.u8(), script.reader.width().min(4));
            script.select(slot, register);
            script.bus.port_write(port::PCI_DATA + u16::from(register & 3), script.reader.take(width));
        }
        2 => {
            let (number, width) =
                (port::PCI_ADDRESS + u16::from(script.reader.u8() % 8), script.reader.width().min(4));
            script.read(number, width);
            script.bus.port_write(number, script.reader.take(width));
        }
        3 => {
            let (address, width) = (window_address(script), script.reader.width());
            script.bus.memory_write(address, script.reader.take(width));
        }
        4 => {
            let (address, width) = (window_address(script), script.reader.width());
            script.bus.memory_read(address, &mut [0xff; 8][..width]);
        }
        5 => {
            let (address, width) = (u64::from(script.reader.u32()), script.reader.width());
            script.bus.memory_read(address, &mut [0xff; 8][..width]);
            script.bus.memory_write(address, script.reader.take(width));
        }
        6 => size_bar(script),
        7 => {
            let (slot, base) = (script.slot(), script.reader.u32());
            script.set_config(slot, BAR0, base);
        }
        8 => {
            let run = script.reader.u8() & 1 != 0;
            script.run_devices(run);
        }
        _ => script.save_and_restore(),
    }
}

/// An address within the window of a function, wherever that lies now.
fn window_address(script: &mut Script<'_>) -> u64 {
    let (slot, offset) = (script.slot(), script.reader.u16() & 0x7fff);
    u64::from(script.config(slot, BAR0) & !0xf) + u64::from(offset)
}

/// As a driver learns the size of a window.
fn size_bar(script: &mut Script<'_>) {
    let slot = script.slot();
    let before = script.config(slot, BAR0);
    script.set_config(slot, BAR0, u32::MAX);
    let mask = script.config(slot, BAR0);
    if script.slots.contains(&slot) {
        assert_eq!(u64::from(!mask) + 1, BAR_BYTES, "a window says how large it is");
    }
    script.set_config(slot, BAR0, before);
    assert_eq!(script.config(slot, BAR0), before);
}

/// What holds for every function whatever the guest wrote.
fn check_functions(script: &Script<'_>, identities: &[u32]) {
    let latch = script.read(port::PCI_ADDRESS, 4);
    for ((&slot, identity), function) in script.slots.iter().zip(identities).zip(script.bus.devices()) {
        assert_eq!(script.config(slot, 0), *identity, "a function stays what it is");
        let base = u64::from(script.config(slot, BAR0));
        assert_eq!(base % BAR_BYTES, 0, "a window lies at a multiple of its size");
        let (first, last) = (layout::PCI_WINDOW.0.into(), u64::from(layout::PCI_WINDOW.1));
        let decodes = script.config(slot, COMMAND) & COMMAND_MEMORY != 0;
        let answers = decodes && base >= first && base + BAR_BYTES - 1 <= last;
        for offset in [0, BAR_BYTES - 1] {
            assert_eq!(function.claims(base + offset), answers.then_some(offset), "window at {base:#x}");
        }
        assert_eq!(function.claims(base + BAR_BYTES), None);
        if answers {
            assert_eq!(script.machine.ram().page_of(Gpa(base)), None, "no window lies over RAM");
        }
        check_capabilities(script, slot);
    }
    script.bus.port_write(port::PCI_ADDRESS, &latch.to_le_bytes());
}

fn check_capabilities(script: &Script<'_>, slot: u8) {
    let mut at = script.config(slot, CAPABILITIES).to_le_bytes()[0];
    let mut kinds = Vec::new();
    while at != 0 {
        assert!(
            at >= 0x40 && at.is_multiple_of(4) && kinds.len() < CAPABILITIES_MAX,
            "a list of capabilities ends"
        );
        let [kind, next, ..] = script.config(slot, at).to_le_bytes();
        kinds.push(kind);
        at = next;
    }
    assert_eq!(kinds, [9, 9, 9, 9, 0x11], "four parts of virtio, and MSI-X");
}

/// Where the board's own devices answer.
const PORTS: [u16; 23] = [
    port::KEYBOARD_DATA,
    port::KEYBOARD_COMMAND,
    port::CMOS,
    port::CMOS + 1,
    port::COM1,
    port::COM1 + 1,
    port::COM1 + 2,
    port::COM1 + 3,
    port::COM1 + 4,
    port::COM1 + 5,
    port::COM1 + 7,
    port::PVPANIC,
    port::WATCHDOG,
    port::PM1_EVENT,
    port::PM1_EVENT + 2,
    port::PM1_CONTROL,
    port::RESET,
    port::PCI_ADDRESS,
    port::GPE0,
    port::GPE0 + 1,
    port::HOTPLUG,
    port::HOTPLUG + 4,
    port::HOTPLUG + 8,
];

/// Drives the board's own devices by the script `data`: serial port, clock, keyboard controller, power registers, watchdog,
/// and those by which devices come and go.
pub fn fuzz_ports(data: &[u8]) {
    on_board(&BOARD, |machine, _| Script::new(machine, data).run(ports_step));
}

fn ports_step(script: &mut Script<'_>) {
    match script.reader.u8() % 10 {
        0..=2 => {
            let (number, width) = (known_port(script), script.reader.width().min(4));
            script.bus.port_write(number, script.reader.take(width));
        }
        3 | 4 => {
            let (number, width) = (known_port(script), script.reader.width().min(4));
            script.read(number, width);
        }
        5 => {
            let (number, width) = (script.reader.u16(), script.reader.width().min(4));
            script.read(number, width);
            script.bus.port_write(number, script.reader.take(width));
        }
        6 => {
            let (number, length) = (known_port(script), usize::from(script.reader.u8()) % STRING_BYTES_MAX);
            script.bus.port_read(number, &mut [0xff; STRING_BYTES_MAX][..length]);
            script.bus.port_write(number, script.reader.take(length));
        }
        7 => {
            let length = usize::from(script.reader.u8());
            script.bus.serial_input(script.reader.take(length));
        }
        8 => match script.reader.u8() % 4 {
            0 => script.run_devices(false),
            1 => script.run_devices(true),
            2 => script.machine.press_power_button(),
            _ => script.bus.watchdog_fired(),
        },
        _ => script.save_and_restore(),
    }
}

fn known_port(script: &mut Script<'_>) -> u16 {
    PORTS[usize::from(script.reader.u8()) % PORTS.len()]
}

/// Restores `data` as the state of a machine with one device of most kinds, and has the devices work with what they got.
/// The length in its header is put right.
pub fn fuzz_restore(data: &[u8]) {
    let mut state = data.to_vec();
    let length = u32::try_from(state.len()).unwrap_or(u32::MAX);
    if let Some(said) = state.get_mut(12..16) {
        said.copy_from_slice(&length.to_le_bytes());
    }
    on_board(&BOARD, |machine, _| {
        if machine.restore_state(&state, RestoreOptions::default()).is_err() {
            return;
        }
        let mut script = Script::new(machine, &[]);
        machine.devices().iter().for_each(|device| device.make_up());
        script.run_devices(true);
        for device in machine.devices() {
            (0..).take(device.doorbells().len()).for_each(|queue| device.serve(queue));
        }
        script.save_and_restore();
    });
}

/// The state of a board at power-on.
pub fn seeds_restore() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    on_board(&BOARD, |_, fresh| seeds.push(fresh.to_vec()));
    seeds
}

/// Configuration read, written and sized, registers behind it, moves and saves.
pub fn seeds_pci() -> Vec<Vec<u8>> {
    let looked = vec![0, 1, 0, 2, 0, 1, 0x34, 0, 0, 2, 0x40, 2, 6, 1, 6, 2];
    let moved = vec![7, 1, 0, 0, 0, 0xd0, 4, 1, 0x14, 0, 0, 3, 1, 0x14, 0, 0, 1, 9];
    let messages =
        vec![1, 1, 0x83, 1, 0, 0x80, 3, 1, 0, 0x40, 2, 0, 0, 0xe0, 0xfe, 3, 1, 12, 0x40, 2, 0, 0, 0, 0, 9];
    vec![looked, moved, messages]
}

/// Every port written and read, input typed, the button pressed.
pub fn seeds_ports() -> Vec<Vec<u8>> {
    let all = (0..23).flat_map(|number| [0, number, 0, 0x20, 3, number, 0]).collect();
    let clock = vec![0, 2, 0, 0x0b, 0, 3, 0, 0x26, 0, 2, 0, 0x0c, 3, 3, 0, 8, 1, 9];
    let talk = vec![0, 5, 0, 3, 7, 4, b'r', b'o', b'o', b't', 3, 4, 0, 8, 2, 8, 1, 8, 0, 9];
    // The disk is let go of: a write of four bytes to the last port.
    let ejected = vec![0, 22, 3, 4, 0, 0, 0, 3, 20, 3, 9];
    vec![all, clock, talk, ejected]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_the_board_are_survived() {
        seeds_pci().iter().for_each(|seed| fuzz_pci(seed));
        seeds_ports().iter().for_each(|seed| fuzz_ports(seed));
        seeds_restore().iter().for_each(|seed| fuzz_restore(seed));
    }
}
