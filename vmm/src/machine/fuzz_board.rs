//! A whole board against scripts of a fuzzer: its buses as a vCPU reaches them, states to be restored, and disk images.

use std::cell::RefCell;
use std::fs;
use std::thread::LocalKey;

use super::fuzz::{Bench, Folder, disk};
use super::platform::Platform;
use super::{Machine, RestoreOptions};
use crate::arch::layout::{self, port};
use crate::devices::block::DiskImage;
use crate::memory::Gpa;
use crate::spec::{ConsoleSpec, DeviceSpecs, DiskFormat, DiskSpec};
use crate::vcpu::Bus;
use crate::virtio::fuzz::Reader;

/// Steps of one script; the rest is not looked at.
const STEPS_MAX: usize = 128;
/// Bytes of an access by a string instruction.
const STRING_BYTES_MAX: usize = 64;
const CONFIG_ENABLE: u32 = 1 << 31;
const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const BAR0: u8 = 0x10;
const BAR_BYTES: u64 = 0x8000;
const CAPABILITIES: u8 = 0x34;
/// Capabilities take at least four bytes of what follows the header.
const CAPABILITIES_MAX: usize = (256 - 64) / 4;

thread_local! {
    static BOARD: RefCell<Option<Bench>> = RefCell::new(Bench::build("board", 0, true, |folder| {
        let console = ConsoleSpec { name: "hvc".to_owned(), socket: folder.join("hvc") };
        let (disks, consoles) = (vec![disk(folder)], vec![console]);
        DeviceSpecs { disks, consoles, rng: true, balloon: true, ..DeviceSpecs::default() }
    }));
    static FOLDER: RefCell<Option<Folder>> = RefCell::new(Folder::new("image"));
}

/// Runs `act` on a board as it was built; without KVM nothing is done.
fn on_board(board: &'static LocalKey<RefCell<Option<Bench>>>, act: impl FnOnce(&Machine, &[u8])) {
    board.with_borrow_mut(|bench| {
        let Some(bench) = bench else { return };
        let machine = &bench.rig.machine;
        machine.platform.pause();
        machine.restore_state(&bench.fresh, RestoreOptions::default()).expect("its own state");
        act(machine, &bench.fresh);
        while machine.events().try_recv().is_some() {}
    });
}

/// The buses during one script.
struct Script<'a> {
    machine: &'a Machine,
    bus: &'a Platform,
    reader: Reader<'a>,
    running: bool,
}

impl<'a> Script<'a> {
    fn new(machine: &'a Machine, data: &'a [u8]) -> Script<'a> {
        Script { machine, bus: &machine.platform, reader: Reader(data), running: false }
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

    /// A slot there is, or the one behind the last.
    fn slot(&mut self) -> u8 {
        self.reader.u8() % (self.slots() + 2)
    }

    fn slots(&self) -> u8 {
        u8::try_from(self.bus.devices().len()).unwrap_or(u8::MAX)
    }
}

/// Drives configuration space and the registers behind it by the script `data`.
pub fn fuzz_pci(data: &[u8]) {
    on_board(&BOARD, |machine, _| {
        let identities =
            (1..=Script::new(machine, &[]).slots()).map(|slot| Script::new(machine, &[]).config(slot, 0));
        let identities: Vec<u32> = identities.collect();
        Script::new(machine, data).run(|script| {
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
    if (1..=script.slots()).contains(&slot) {
        assert_eq!(u64::from(!mask) + 1, BAR_BYTES, "a window says how large it is");
    }
    script.set_config(slot, BAR0, before);
    assert_eq!(script.config(slot, BAR0), before);
}

/// What holds for every function whatever the guest wrote.
fn check_functions(script: &Script<'_>, identities: &[u32]) {
    let latch = script.read(port::PCI_ADDRESS, 4);
    for ((slot, identity), function) in (1..).zip(identities).zip(script.bus.devices()) {
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
        assert!(at >= 0x40 && at % 4 == 0 && kinds.len() < CAPABILITIES_MAX, "a list of capabilities ends");
        let [kind, next, ..] = script.config(slot, at).to_le_bytes();
        kinds.push(kind);
        at = next;
    }
    assert_eq!(kinds, [9, 9, 9, 9, 0x11], "four parts of virtio, and MSI-X");
}

/// Where the board's own devices answer.
const PORTS: [u16; 18] = [
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
];

/// Drives the board's own devices by the script `data`: serial port, clock, keyboard controller, power registers, watchdog.
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
    let all = (0..18).flat_map(|number| [0, number, 0, 0x20, 3, number, 0]).collect();
    let clock = vec![0, 2, 0, 0x0b, 0, 3, 0, 0x26, 0, 2, 0, 0x0c, 3, 3, 0, 8, 1, 9];
    let talk = vec![0, 5, 0, 3, 7, 4, b'r', b'o', b'o', b't', 3, 4, 0, 8, 2, 8, 1, 8, 0, 9];
    vec![all, clock, talk]
}

/// Opens `data` as a qcow2 image as a disk is opened, and works with it.
pub fn fuzz_qcow2(data: &[u8]) {
    FOLDER.with_borrow(|folder| {
        let Some(folder) = folder else { return };
        let path = folder.0.join("image.qcow2");
        for readonly in [true, false] {
            if fs::write(&path, data).is_err() {
                return;
            }
            let spec =
                DiskSpec { path: path.clone(), format: DiskFormat::Qcow2, readonly, ..disk(&folder.0) };
            let surveyed = DiskImage::survey(&spec);
            let Ok(mut image) = DiskImage::open(&spec) else { continue };
            let geometry = surveyed.expect("what can be opened can be surveyed");
            image.fuzz(geometry);
        }
    });
}

/// An image of 4 MiB with one cluster in use, and one that is based on itself.
pub fn seeds_qcow2() -> Vec<Vec<u8>> {
    let plain = qcow2(None);
    vec![plain, qcow2(Some("image.qcow2"))]
}

/// Clusters of 512 bytes: header, table of refcounts, its block, L1, L2, and data.
fn qcow2(base: Option<&str>) -> Vec<u8> {
    const CLUSTER: usize = 512;
    let mut image = vec![0; 6 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    if let Some(name) = base {
        put(8, &112u64.to_be_bytes());
        put(16, &u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        put(112, name.as_bytes());
    }
    // Bits of a cluster, bytes of the disk.
    put(20, &9u32.to_be_bytes());
    put(24, &(64u64 << 10).to_be_bytes());
    // L1: entries, place. Refcounts: place, clusters.
    put(36, &2u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    // Refcounts of 16 bits, length of the header.
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    (0..6).for_each(|cluster| put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes()));
    put(3 * CLUSTER, &(1 << 63 | 4 * CLUSTER as u64).to_be_bytes());
    put(4 * CLUSTER, &(1 << 63 | 5 * CLUSTER as u64).to_be_bytes());
    put(5 * CLUSTER, &[7; CLUSTER]);
    image
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

    #[test]
    fn an_image_based_on_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        fs::write(&path, qcow2(Some("image.qcow2"))).unwrap();
        let spec = DiskSpec { path, format: DiskFormat::Qcow2, readonly: true, ..disk(folder.path()) };
        let refused = DiskImage::open(&spec).unwrap_err().to_string();
        assert!(refused.contains("is based on itself"), "{refused}");
    }

    #[test]
    fn an_image_whose_header_is_not_counted_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        let mut image = qcow2(None);
        image[512..520].fill(0);
        fs::write(&path, image).unwrap();
        let spec = |readonly| DiskSpec {
            path: path.clone(),
            format: DiskFormat::Qcow2,
            readonly,
            ..disk(folder.path())
        };
        let refused = DiskImage::open(&spec(false)).unwrap_err();
        let reason = std::error::Error::source(&refused).unwrap().to_string();
        assert!(reason.contains("refcounts"), "{reason}");
        DiskImage::open(&spec(true)).unwrap();
    }

    #[test]
    fn the_small_qcow2_image_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        fs::write(&path, qcow2(None)).unwrap();
        let spec = DiskSpec { path, format: DiskFormat::Qcow2, ..disk(folder.path()) };
        DiskImage::open(&spec).unwrap();
    }
}
