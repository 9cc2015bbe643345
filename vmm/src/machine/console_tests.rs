//! The paravirtual console between a driver of our own and clients: real KVM objects and sockets, no guest.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Machine, MachinePorts, RestoreOptions};
use crate::devices::console::{ConsoleLink, ConsolePort, Terminal};
use crate::devices::net::Transmit;
use crate::devices::serial::StreamPort;
use crate::limits::CONSOLE_CHAIN_BYTES_MAX;
use crate::spec::{ConsoleSpec, DeviceSpecs};
use crate::virtio::rig::{self, BUFFERS, CONFIG, NEEDS_RESET, Rig, used};

const SIZE: u64 = 1;
const MULTIPORT: u64 = 2;
const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(20);
/// Buffers for control messages, of 64 bytes each.
const CONTROL_BUFFERS: u16 = 32;
const OUT_AT: u64 = BUFFERS + 0x10_0000;
const IN_AT: u64 = BUFFERS + 0x20_0000;

/// A gate that a test opens.
struct Sluice {
    terminal: Arc<Terminal>,
    held: Mutex<Vec<Vec<u8>>>,
    open: AtomicBool,
    full: AtomicBool,
}

impl ConsolePort for Sluice {
    fn write(&self, bytes: &[u8]) -> Transmit {
        if self.full.load(Ordering::SeqCst) {
            return Transmit::Full;
        }
        match self.open.load(Ordering::SeqCst) {
            true => self.terminal.show(bytes),
            false => self.held.lock().unwrap().push(bytes.to_vec()),
        }
        Transmit::Taken
    }
}

struct Driver {
    rig: Rig,
    sluices: Vec<Arc<Sluice>>,
    folder: tempfile::TempDir,
    /// Control messages read.
    seen: u16,
}

impl Driver {
    /// With a console and a port of a name; `None`, with a word about it, where there is no KVM.
    fn new(features: u64) -> Option<Driver> {
        if let Err(error) = crate::kvm::open() {
            println!("SKIPPED: {error}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = |name: &str| ConsoleSpec { name: name.to_owned(), socket: folder.path().join(name) };
        let consoles = vec![port("hvc"), port("agent")];
        let devices = DeviceSpecs { consoles: consoles.clone(), ..DeviceSpecs::default() };
        let spec = rig::spec(devices);
        let sluice = |spec: &ConsoleSpec| {
            let terminal = Arc::new(Terminal::bind(&spec.socket).unwrap());
            let (open, full) = (AtomicBool::new(true), AtomicBool::new(false));
            Arc::new(Sluice { terminal, held: Mutex::default(), open, full })
        };
        let sluices: Vec<Arc<Sluice>> = consoles.iter().map(sluice).collect();
        let link = |sluice: &Arc<Sluice>| ConsoleLink {
            terminal: Arc::clone(&sluice.terminal),
            port: Arc::clone(sluice) as Arc<dyn ConsolePort>,
        };
        let ports = MachinePorts {
            net: Vec::new(),
            serial: Arc::new(StreamPort::new(std::io::sink())),
            vsock: None,
            consoles: sluices.iter().map(link).collect(),
            disks: None,
        };
        let machine = Machine::build(&spec, ports).unwrap();
        let mut driver = Driver { rig: Rig::new(machine, 0, features), sluices, folder, seen: 0 };
        driver.fill();
        Some(driver)
    }

    /// With both ports there and open in the guest, as Linux has it after boot.
    fn up() -> Option<Driver> {
        let mut driver = Driver::new(SIZE | MULTIPORT)?;
        driver.say(0, DEVICE_READY, 1);
        driver.expect(0, DEVICE_ADD, b"");
        driver.expect(1, DEVICE_ADD, b"");
        driver.say(0, PORT_READY, 1);
        driver.expect(0, CONSOLE_PORT, b"");
        driver.expect(0, PORT_NAME, b"hvc");
        driver.expect(0, PORT_OPEN, b"");
        driver.say(1, PORT_READY, 1);
        driver.expect(1, PORT_NAME, b"agent");
        driver.say(0, PORT_OPEN, 1);
        driver.say(1, PORT_OPEN, 1);
        assert_eq!(driver.try_control(), None);
        Some(driver)
    }

    fn fill(&mut self) {
        self.seen = 0;
        (0..CONTROL_BUFFERS).for_each(|head| self.offer_control(head));
    }

    fn offer_control(&mut self, head: u16) {
        self.rig.chain(CONTROL_RX, head, &[(BUFFERS + 64 * u64::from(head), 64, true)]);
    }

    fn say(&mut self, id: u32, event: u16, value: u16) {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend([event, value].into_iter().flat_map(u16::to_le_bytes));
        self.say_raw(&bytes);
    }

    fn say_raw(&mut self, bytes: &[u8]) {
        self.rig.put(OUT_AT, bytes);
        self.rig.chain(CONTROL_TX, 0, &[(OUT_AT, u32::try_from(bytes.len()).unwrap(), false)]);
    }

    /// The next control message: port, event, value, and what is behind.
    fn try_control(&mut self) -> Option<(u32, u16, u16, Vec<u8>)> {
        self.rig.device.serve(0);
        self.rig.device.serve(CONTROL_RX);
        if self.rig.used(CONTROL_RX) == self.seen {
            return None;
        }
        let entry = used(CONTROL_RX) + 4 + 8 * u64::from(self.seen % 256);
        let head = u16::from_le_bytes(self.rig.get(entry, 2).try_into().unwrap());
        let length = usize::try_from(self.rig.written(CONTROL_RX, self.seen)).unwrap();
        let bytes = self.rig.get(BUFFERS + 64 * u64::from(head), length);
        self.seen = self.seen.wrapping_add(1);
        self.offer_control(head);
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let id = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        Some((id, short(4), short(6), bytes[8..].to_vec()))
    }

    fn control(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let begun = Instant::now();
        loop {
            if let Some(message) = self.try_control() {
                return message;
            }
            assert!(begun.elapsed() < PATIENCE, "the device says nothing");
        }
    }

    fn expect(&mut self, id: u32, event: u16, behind: &[u8]) {
        assert_eq!(self.control(), (id, event, 1, behind.to_vec()));
    }

    fn client(&self, name: &str) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join(name)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// The guest writes on a port.
    fn write(&mut self, port: u16, bytes: &[u8]) {
        self.rig.put(OUT_AT, bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        self.rig.chain(transmit(port), 0, &[(OUT_AT, length, false)]);
    }

    /// Offers a receive buffer.
    fn offer(&mut self, port: u16, length: u32) {
        self.rig.chain(transmit(port) - 1, 0, &[(IN_AT, length, true)]);
    }

    /// The bytes of the receive buffer that the device returned as number `index`.
    fn received(&mut self, port: u16, index: u16) -> Vec<u8> {
        let (queue, begun) = (transmit(port) - 1, Instant::now());
        while self.rig.used(queue) == index {
            self.rig.device.serve(0);
            assert!(begun.elapsed() < PATIENCE, "nothing received");
        }
        self.rig.get(IN_AT, usize::try_from(self.rig.written(queue, index)).unwrap())
    }
}

/// Queue through which the guest sends on a port.
fn transmit(port: u16) -> u16 {
    if port == 0 { 1 } else { 3 + 2 * port }
}

fn read(client: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_driver_learns_of_its_ports() {
    let Some(driver) = Driver::up() else { return };
    assert_eq!(driver.rig.read::<8>(CONFIG), [0, 0, 0, 0, 2, 0, 0, 0]);
}

#[test]
fn words_go_both_ways_on_each_port() {
    let Some(mut driver) = Driver::up() else { return };
    for (port, name) in [(0, "hvc"), (1, "agent")] {
        let mut client = driver.client(name);
        if port == 1 {
            driver.expect(1, PORT_OPEN, b"");
        }
        driver.write(port, b"from the guest");
        assert_eq!(read(&mut client, 14), b"from the guest");
        client.write_all(b"to the guest").unwrap();
        driver.offer(port, 7);
        assert_eq!(driver.received(port, 0), b"to the ");
        driver.offer(port, 100);
        assert_eq!(driver.received(port, 1), b"guest");
    }
}

#[test]
fn a_driver_without_ports_has_the_console() {
    let Some(mut driver) = Driver::new(0) else { return };
    let mut client = driver.client("hvc");
    driver.write(0, b"login: ");
    assert_eq!(read(&mut client, 7), b"login: ");
    client.write_all(b"root\n").unwrap();
    driver.offer(0, 100);
    assert_eq!(driver.received(0, 0), b"root\n");
}

#[test]
fn input_waits_until_the_guest_has_opened_the_port() {
    let Some(mut driver) = Driver::up() else { return };
    driver.say(1, PORT_OPEN, 0);
    let mut client = driver.client("agent");
    client.write_all(b"early").unwrap();
    driver.offer(1, 100);
    driver.expect(1, PORT_OPEN, b"");
    assert_eq!(driver.rig.used(transmit(1) - 1), 0);
    driver.say(1, PORT_OPEN, 1);
    assert_eq!(driver.received(1, 0), b"early");
}

#[test]
fn a_client_gets_what_was_said_before_it_came_and_the_guest_sees_it_come_and_go() {
    let Some(mut driver) = Driver::up() else { return };
    driver.write(1, b"before");
    let mut client = driver.client("agent");
    driver.expect(1, PORT_OPEN, b"");
    assert_eq!(read(&mut client, 6), b"before");
    drop(client);
    driver.offer(1, 100);
    assert_eq!(driver.control(), (1, PORT_OPEN, 0, Vec::new()));
    let _next = driver.client("agent");
    driver.expect(1, PORT_OPEN, b"");
}

#[test]
fn output_passes_its_way_out_and_a_full_one_loses_nothing() {
    let Some(mut driver) = Driver::up() else { return };
    let mut client = driver.client("hvc");
    driver.sluices[0].open.store(false, Ordering::SeqCst);
    driver.write(0, b"held");
    driver.rig.device.serve(0);
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let held = std::mem::take(&mut *driver.sluices[0].held.lock().unwrap());
    assert_eq!(held, [b"held"]);
    held.iter().for_each(|bytes| driver.sluices[0].terminal.show(bytes));
    driver.sluices[0].open.store(true, Ordering::SeqCst);
    driver.sluices[0].full.store(true, Ordering::SeqCst);
    let before = driver.rig.used(1);
    driver.write(0, b" and late");
    assert_eq!(driver.rig.used(1), before);
    driver.sluices[0].full.store(false, Ordering::SeqCst);
    driver.rig.device.serve(1);
    client.set_nonblocking(false).unwrap();
    assert_eq!(read(&mut client, 13), b"held and late");
    assert_eq!(driver.rig.used(1), before + 1);
}

#[test]
fn a_window_has_its_new_size_in_both_ways() {
    let Some(mut driver) = Driver::up() else { return };
    assert!(driver.rig.machine.resize(0, 132, 43));
    driver.expect(0, RESIZE, &[132, 0, 43, 0]);
    assert_eq!(driver.rig.read::<4>(CONFIG), [132, 0, 43, 0]);
    assert!(!driver.rig.machine.resize(2, 1, 1));
    driver.rig.device.pause();
    assert!(driver.rig.machine.resize(0, 80, 25));
    assert_eq!(driver.rig.read::<4>(CONFIG), [132, 0, 43, 0], "nothing changes while paused");
    driver.rig.device.resume();
    driver.expect(0, RESIZE, &[80, 0, 25, 0]);
    driver.rig.start();
    driver.fill();
    driver.say(0, DEVICE_READY, 1);
    driver.expect(0, DEVICE_ADD, b"");
    driver.expect(1, DEVICE_ADD, b"");
    driver.say(0, PORT_READY, 1);
    driver.expect(0, CONSOLE_PORT, b"");
    driver.expect(0, PORT_NAME, b"hvc");
    driver.expect(0, RESIZE, &[80, 0, 25, 0]);
}

#[test]
fn hostile_control_messages_change_nothing_and_pile_nothing_up() {
    let Some(mut driver) = Driver::up() else { return };
    for (id, event) in [(2, PORT_READY), (u32::MAX, PORT_OPEN), (0, 2), (0, 8), (1, u16::MAX), (0, RESIZE)] {
        driver.say(id, event, 1);
    }
    for length in [1, 4, 7] {
        driver.say_raw(&vec![0; length]);
    }
    assert_eq!(driver.try_control(), None);
    assert_eq!(driver.rig.machine.metrics().console.unwrap().control_dropped, 9);
    driver.rig.start();
    for _ in 0..2000 {
        driver.say(0, DEVICE_READY, 1);
        driver.say(0, PORT_READY, 1);
        driver.say(1, PORT_READY, 1);
    }
    driver.fill();
    let mut messages = 0;
    while driver.try_control().is_some() {
        messages += 1;
    }
    assert!((1..=8).contains(&messages), "{messages}");
    assert_eq!(driver.rig.status() & NEEDS_RESET, 0);
}

#[test]
fn malformed_chains_stop_the_device_until_it_is_reset() {
    let Some(mut driver) = Driver::up() else { return };
    let past_ram = 16 << 20;
    let mut client = driver.client("hvc");
    client.write_all(b"input").unwrap();
    for (queue, chain) in [
        (1, vec![(BUFFERS, 8, false), (BUFFERS, 8, true)]),
        (1, vec![(past_ram - 4, 8, false)]),
        (CONTROL_TX, vec![(BUFFERS, 8, true)]),
        (CONTROL_TX, vec![(past_ram, 8, false)]),
        (CONTROL_RX, vec![(BUFFERS, 7, true)]),
        (CONTROL_RX, vec![(BUFFERS, 8, false)]),
        (0, vec![(BUFFERS, 0, true)]),
        (0, vec![(BUFFERS, 8, false)]),
    ] {
        driver.rig.start();
        driver.rig.chain(queue, 0, &chain);
        if driver.rig.status() & NEEDS_RESET == 0 {
            driver.say(0, DEVICE_READY, 1);
            driver.say(0, PORT_OPEN, 1);
            driver.rig.device.serve(0);
        }
        assert_eq!(driver.rig.status() & NEEDS_RESET, NEEDS_RESET, "{queue} {chain:?}");
    }
    driver.rig.start();
    driver.write(0, b"well again");
    assert_eq!(read(&mut client, 10), b"well again");
}

#[test]
fn a_chain_longer_than_any_is_cut_and_counted() {
    let Some(mut driver) = Driver::up() else { return };
    let longest = u32::try_from(CONSOLE_CHAIN_BYTES_MAX).unwrap();
    driver.rig.chain(1, 0, &[(BUFFERS, longest, false), (BUFFERS, longest, false)]);
    let metrics = driver.rig.machine.metrics().console.unwrap();
    assert_eq!((metrics.tx_bytes, metrics.tx_dropped), (u64::from(longest), u64::from(longest)));
}

#[test]
fn a_replica_goes_on_with_the_ports_and_tells_that_the_client_is_gone() {
    let Some(mut driver) = Driver::up() else { return };
    let _client = driver.client("agent");
    driver.expect(1, PORT_OPEN, b"");
    assert!(driver.rig.machine.resize(0, 100, 30));
    driver.expect(0, RESIZE, &[100, 0, 30, 0]);
    driver.rig.device.pause();
    let mut state = Vec::new();
    driver.rig.machine.save_state(&mut state).unwrap();
    let mut replica = Driver::new(SIZE | MULTIPORT).unwrap();
    replica.rig.device.pause();
    let mut page = [0; 4096];
    for index in (0..driver.rig.ram().page_count()).map(mycelium_ram_core::PageIndex) {
        driver.rig.ram().read_page(index, &mut page).unwrap();
        replica.rig.ram().write_page(index, &page).unwrap();
    }
    replica.rig.take_over(&driver.rig);
    replica.seen = driver.seen;
    replica.rig.machine.restore_state(&state, RestoreOptions::default()).unwrap();
    replica.rig.device.make_up();
    replica.rig.device.resume();
    assert_eq!(replica.control(), (1, PORT_OPEN, 0, Vec::new()));
    assert_eq!(replica.try_control(), None, "all else is as it was");
    assert_eq!(replica.rig.read::<4>(CONFIG), [100, 0, 30, 0]);
    let mut client = replica.client("hvc");
    replica.write(0, b"here now");
    assert_eq!(read(&mut client, 8), b"here now");
    client.write_all(b"hello").unwrap();
    replica.offer(0, 64);
    assert_eq!(replica.received(0, 0), b"hello");
}
