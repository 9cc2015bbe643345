//! Devices of a whole machine against scripts of a fuzzer. Each thread builds a machine once; without KVM nothing is done.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::LocalKey;

use super::{Machine, MachinePorts, RestoreOptions};
use crate::devices::console::ConsoleLink;
use crate::devices::net::{NicPort, Tap, TapPort};
use crate::devices::serial::StreamPort;
use crate::devices::vsock::{DirectPort, VsockLink};
use crate::limits::RAM_BYTES_MIN;
use crate::spec::{
    ConsoleSpec, DeviceSpecs, DiskCache, DiskFormat, DiskSpec, MacAddress, NetSpec, VsockSpec,
};
use crate::virtio::fuzz::{Script, drive, wipe};
use crate::virtio::rig::{Rig, spec};

/// The port at which a program of the host listens.
const HOST_PORT: u32 = 52;
const CID: u64 = 3;
/// Address, merged buffers, status, control queue, announcements, several pairs of queues; checksums and segmentation.
const NET_FEATURES: u64 = 1 << 5 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 22 | 0b11_1011_1000_0011;
const NET_PAIRS: u16 = 2;
/// A TCP segment to be cut into pieces of 100 bytes.
const LARGE: [u8; 12] = [1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0];
/// Segments, block size, flush, queues, discard, write-zeroes.
const DISK_FEATURES: u64 = 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14;
const DISK_BYTES: u64 = 4 << 20;
/// Statistics, deflating by itself, pattern, reporting.
const BALLOON_FEATURES: u64 = 0b11_0110;

/// A machine with one device, and the state that every script begins with.
pub(super) struct Bench {
    pub(super) rig: Rig,
    pub(super) fresh: Vec<u8>,
    /// Programs of the host, for a socket device.
    program: Option<UnixListener>,
    /// The far ends of a card's queues.
    wires: Vec<UnixDatagram>,
    _folder: Folder,
}

/// A folder for sockets, gone with the bench.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new(device: &str) -> Option<Folder> {
        let name =
            format!("endophyte-fuzz-{}-{device}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).ok()?;
        Some(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl Bench {
    /// `None` where no machine can be built.
    pub(super) fn new(
        name: &str,
        features: u64,
        devices: impl FnOnce(&Path) -> DeviceSpecs,
    ) -> Option<Bench> {
        Self::build(name, features, false, devices)
    }

    pub(super) fn build(
        name: &str,
        features: u64,
        card: bool,
        devices: impl FnOnce(&Path) -> DeviceSpecs,
    ) -> Option<Bench> {
        let folder = Folder::new(name)?;
        let mut spec = spec(devices(&folder.0));
        if card {
            let mac = MacAddress([2, 0, 0, 0, 0, 1]);
            spec.net = vec![NetSpec { queues: NET_PAIRS, ..NetSpec::plain("wire", mac) }];
        }
        let vsock = spec.devices.vsock.as_ref();
        let (net, wires) = if spec.net.is_empty() { Default::default() } else { wire()? };
        let program = vsock.and_then(|vsock| {
            let path = format!("{}_{HOST_PORT}", vsock.socket.display());
            let listener = UnixListener::bind(path).ok()?;
            listener.set_nonblocking(true).ok().map(|()| listener)
        });
        let ports = MachinePorts {
            net,
            serial: Arc::new(StreamPort::new(std::io::sink())),
            vsock: vsock.map(|vsock| VsockLink::bind(vsock, Arc::new(DirectPort))).transpose().ok()?,
            consoles: spec.devices.consoles.iter().map(ConsoleLink::direct).collect::<Result<_, _>>().ok()?,
            disks: None,
        };
        let machine = Machine::build(&spec, ports).ok()?;
        machine.set_rx_enabled(true);
        let rig = Rig::new(machine, 0, features);
        let mut fresh = Vec::new();
        rig.device.pause();
        rig.machine.save_state(&mut fresh).ok()?;
        Some(Bench { rig, fresh, program, wires, _folder: folder })
    }

    /// With a network card.
    fn with_card() -> Option<Bench> {
        Bench::build("net", NET_FEATURES, true, |_| DeviceSpecs::default())
    }

    fn run(&mut self, data: &[u8]) {
        self.rig.device.pause();
        self.rig.machine.restore_state(&self.fresh, RestoreOptions::default()).expect("its own state");
        wipe(&self.rig);
        self.rig.start();
        let packet = [&LARGE[..], &[7; 4000]].concat();
        self.wires.iter().for_each(|wire| drop(wire.send(&packet)));
        drive(&mut self.rig, data);
        self.wires.iter().for_each(drain);
        while self.program.as_ref().is_some_and(|program| program.accept().is_ok()) {}
    }
}

/// A card's outside: sockets that pass for a tap that can do everything, and their other ends.
fn wire() -> Option<(Vec<NicPort>, Vec<UnixDatagram>)> {
    let pairs: Vec<_> = (0..NET_PAIRS).map(|_| UnixDatagram::pair().ok()).collect::<Option<_>>()?;
    let (far, near): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    far.iter().chain(&near).try_for_each(|end| end.set_nonblocking(true)).ok()?;
    let tap = Arc::new(Tap::pretended(near.into_iter().map(OwnedFd::from).collect(), "wire"));
    Some((vec![NicPort { port: Arc::new(TapPort::new(Arc::clone(&tap))), tap }], far))
}

/// Takes what the card has sent, so that its way out is never full.
fn drain(wire: &UnixDatagram) {
    while wire.recv(&mut [0; 16]).is_ok() {}
}

/// An image of a disk that a script may fill.
pub(super) fn disk(folder: &Path) -> DiskSpec {
    let path = folder.join("disk");
    // Where it cannot be made no machine can be built either, and nothing is fuzzed.
    drop(File::create(&path).and_then(|file| file.set_len(DISK_BYTES)));
    DiskSpec {
        path,
        format: DiskFormat::Raw,
        readonly: false,
        serial: "fuzzed".to_owned(),
        cache: DiskCache::Writeback,
        queues: 2,
        iops: None,
        bytes_per_s: None,
        slot: None,
    }
}

thread_local! {
    static NET: RefCell<Option<Bench>> = RefCell::new(Bench::with_card());
    static BLOCK: RefCell<Option<Bench>> = RefCell::new(Bench::new("block", DISK_FEATURES, |folder| {
        DeviceSpecs { disks: vec![disk(folder)], ..DeviceSpecs::default() }
    }));
    static RNG: RefCell<Option<Bench>> = RefCell::new(Bench::new("rng", 0, |_| {
        DeviceSpecs { rng: true, ..DeviceSpecs::default() }
    }));
    static BALLOON: RefCell<Option<Bench>> = RefCell::new(Bench::new("balloon", BALLOON_FEATURES, |_| {
        DeviceSpecs { balloon: true, ..DeviceSpecs::default() }
    }));
    static VSOCK: RefCell<Option<Bench>> = RefCell::new(Bench::new("vsock", 0, |folder| {
        let vsock = VsockSpec { cid: 3, socket: folder.join("socket") };
        DeviceSpecs { vsock: Some(vsock), ..DeviceSpecs::default() }
    }));
    static CONSOLE: RefCell<Option<Bench>> = RefCell::new(Bench::new("console", 3, |folder| {
        let port = |name: &str| ConsoleSpec { name: name.to_owned(), socket: folder.join(name) };
        DeviceSpecs { consoles: vec![port("hvc"), port("agent")], ..DeviceSpecs::default() }
    }));
}

fn run(bench: &'static LocalKey<RefCell<Option<Bench>>>, data: &[u8]) {
    bench.with_borrow_mut(|bench| bench.iter_mut().for_each(|bench| bench.run(data)));
}

/// Drives a network card by the script `data`.
pub fn fuzz_net(data: &[u8]) {
    run(&NET, data);
}

/// Drives a disk by the script `data`.
pub fn fuzz_block(data: &[u8]) {
    run(&BLOCK, data);
}

/// Drives the entropy source by the script `data`.
pub fn fuzz_rng(data: &[u8]) {
    run(&RNG, data);
}

/// Drives the balloon by the script `data`.
pub fn fuzz_balloon(data: &[u8]) {
    run(&BALLOON, data);
}

/// Drives the socket device by the script `data`.
pub fn fuzz_vsock(data: &[u8]) {
    run(&VSOCK, data);
}

/// Drives the paravirtual console by the script `data`.
pub fn fuzz_console(data: &[u8]) {
    run(&CONSOLE, data);
}

/// Scripts that make sense to the socket device: a connection made, used and ended, and chaos.
pub fn seeds_vsock() -> Vec<Vec<u8>> {
    let up = |script: Script| {
        let buffers = (0..8).fold(script, |script, page| script.buffer(0, page, 4096));
        buffers.buffer(2, 8, 8).packet(1, 20, &packet(1, 0, b"")).serve(0)
    };
    let used = |script: Script| {
        let written = script.packet(1, 21, &packet(5, 0, b"hello")).packet(1, 22, &packet(6, 0, b""));
        written.packet(1, 23, &packet(7, 0, b"")).serve(0)
    };
    let ended =
        |script: Script| script.packet(1, 24, &packet(4, 3, b"")).serve(0).packet(1, 25, &packet(3, 0, b""));
    let whole = ended(used(up(Script::default())));
    vec![whole.bytes(), used(up(Script::default()).upheaval()).bytes(), Script::default().upheaval().bytes()]
}

/// Scripts that make sense to the paravirtual console: a driver that starts, talks and restarts.
pub fn seeds_console() -> Vec<Vec<u8>> {
    let up = |script: Script| {
        let buffers = (0..8).fold(script, |script, page| script.buffer(2, page, 64));
        let ready = [(0u32, 0u16), (0, 3), (1, 3), (0, 6), (1, 6)];
        (20..).zip(ready).fold(buffers, |script, (page, (id, event))| {
            let bytes = [&id.to_le_bytes()[..], &event.to_le_bytes(), &1u16.to_le_bytes()].concat();
            script.packet(3, page, &bytes)
        })
    };
    let used = |script: Script| {
        script.packet(1, 30, b"login: ").packet(5, 31, b"{}").buffer(0, 32, 64).buffer(4, 33, 64)
    };
    vec![
        used(up(Script::default())).serve(0).bytes(),
        used(up(Script::default().upheaval())).upheaval().bytes(),
    ]
}

/// Scripts that make sense to a network card of two pairs: frames to be cut and others, buffers to be merged, commands.
pub fn seeds_net() -> Vec<Vec<u8>> {
    let large = [&LARGE[..], &[7; 400]].concat();
    let used = |script: Script| {
        let buffers =
            (16..24).fold(script, |script, page| script.buffer(0, page, 2048).buffer(2, page + 16, 1024));
        let sent = buffers.packet(1, 2, &[0; 12 + 60]).packet(3, 4, &large);
        sent.request(4, 6, &[4, 0, 2, 0], 1).packet(3, 8, &large).serve(0).serve(2).request(4, 10, &[3, 0], 1)
    };
    let again = used(Script::default().packet(1, 2, &[0; 100]).upheaval());
    vec![used(Script::default()).bytes(), again.upheaval().bytes()]
}

/// Scripts that make sense to a disk: every request.
pub fn seeds_block() -> Vec<Vec<u8>> {
    let request = |kind: u32, sector: u64, data: &[u8]| {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), data].concat()
    };
    let range = [&8u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
    let moved = Script::default()
        .request(0, 1, &request(1, 8, &[7; 480]), 1)
        .request(1, 2, &request(0, 8, &[]), 513)
        .request(0, 3, &request(4, 0, &[]), 1);
    let cleared = Script::default()
        .request(0, 1, &request(11, 0, &range), 1)
        .request(0, 2, &request(13, 0, &range), 1)
        .request(0, 3, &request(8, 0, &[]), 21);
    vec![moved.bytes(), cleared.bytes(), Script::default().upheaval().bytes()]
}

/// Scripts that make sense to the entropy source: buffers.
pub fn seeds_rng() -> Vec<Vec<u8>> {
    vec![Script::default().buffer(0, 1, 64).buffer(0, 2, 4096).bytes(), Script::default().upheaval().bytes()]
}

/// Scripts that make sense to the balloon: pages in and out, statistics, a report.
pub fn seeds_balloon() -> Vec<Vec<u8>> {
    let pages = [0x800u32, 0x801, 0xa00].map(u32::to_le_bytes).concat();
    let moved = Script::default().packet(0, 1, &pages).packet(1, 2, &pages).packet(2, 3, &[0; 20]);
    vec![moved.buffer(4, 16, 0x4000).bytes(), Script::default().upheaval().bytes()]
}

/// A packet of the guest's for the program that listens.
fn packet(op: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0);
    let mut bytes = [CID.to_le_bytes(), 2u64.to_le_bytes()].concat();
    bytes.extend([1000, HOST_PORT, length].into_iter().flat_map(u32::to_le_bytes));
    bytes.extend([1, op].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend([flags, 1 << 18, 0].into_iter().flat_map(u32::to_le_bytes));
    bytes.extend(payload);
    bytes
}

const _: () = assert!(RAM_BYTES_MIN >= 16 << 20, "scripts and rings lie in the first 16 MiB");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..12);
        (prop::sample::select(seeds), changes).prop_map(|(mut bytes, changes)| {
            for (at, byte, how) in changes {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes[at] ^= 1 << (byte % 8),
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn no_script_makes_a_card_panic(script in mutated(seeds_net())) {
            fuzz_net(&script);
        }

        #[test]
        fn no_script_makes_a_disk_panic(script in mutated(seeds_block())) {
            fuzz_block(&script);
        }

        #[test]
        fn no_script_makes_the_entropy_source_panic(script in mutated(seeds_rng())) {
            fuzz_rng(&script);
        }

        #[test]
        fn no_script_makes_the_balloon_panic(script in mutated(seeds_balloon())) {
            fuzz_balloon(&script);
        }

        #[test]
        fn no_script_makes_the_socket_device_panic(script in mutated(seeds_vsock())) {
            fuzz_vsock(&script);
        }

        #[test]
        fn no_script_makes_the_console_panic(script in mutated(seeds_console())) {
            fuzz_console(&script);
        }
    }

    #[test]
    fn seeds_reach_the_devices() {
        if let Err(error) = crate::kvm::open() {
            println!("SKIPPED: {error}");
            return;
        }
        seeds_vsock().iter().for_each(|seed| fuzz_vsock(seed));
        let vsock = VSOCK.with_borrow(|bench| bench.as_ref().unwrap().rig.machine.metrics().vsock.unwrap());
        assert!(vsock.from_guest >= 2 && vsock.tx_bytes >= 5, "{vsock:?}");
        seeds_console().iter().for_each(|seed| fuzz_console(seed));
        seeds_net().iter().for_each(|seed| fuzz_net(seed));
        let net = NET.with_borrow(|bench| bench.as_ref().unwrap().rig.machine.metrics().net[0].of);
        assert!(net.tx_large >= 2 && net.rx_large >= 1 && net.tx_frames > net.tx_large, "{net:?}");
        seeds_block().iter().for_each(|seed| fuzz_block(seed));
        let disk = BLOCK.with_borrow(|bench| bench.as_ref().unwrap().rig.machine.metrics().disks[0].of);
        assert!(disk.reads >= 1 && disk.flushes >= 1 && disk.discards >= 2, "{disk:?}");
        seeds_balloon().iter().for_each(|seed| fuzz_balloon(seed));
        let balloon =
            BALLOON.with_borrow(|bench| bench.as_ref().unwrap().rig.machine.metrics().balloon.unwrap());
        assert!(balloon.inflated_pages > 0, "{balloon:?}");
        let console =
            CONSOLE.with_borrow(|bench| bench.as_ref().unwrap().rig.machine.metrics().console.unwrap());
        assert!(console.tx_bytes >= 9, "{console:?}");
    }
}
