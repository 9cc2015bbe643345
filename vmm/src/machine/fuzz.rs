//! Devices of a whole machine against scripts of a fuzzer. Each thread builds a machine once; without KVM nothing is done.

use std::cell::RefCell;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Machine, MachinePorts, RestoreOptions};
use crate::devices::console::ConsoleLink;
use crate::devices::serial::StreamPort;
use crate::devices::vsock::{DirectPort, VsockLink};
use crate::limits::RAM_BYTES_MIN;
use crate::spec::{ConsoleSpec, DeviceSpecs, VsockSpec};
use crate::virtio::fuzz::{Script, drive, wipe};
use crate::virtio::rig::{Rig, spec};

/// The port at which a program of the host listens.
const HOST_PORT: u32 = 52;
const CID: u64 = 3;

/// A machine with one device, and the state that every script begins with.
struct Bench {
    rig: Rig,
    fresh: Vec<u8>,
    /// Programs of the host, for a socket device.
    program: Option<UnixListener>,
    _folder: Folder,
}

/// A folder for sockets, gone with the bench.
struct Folder(PathBuf);

impl Folder {
    fn new(device: &str) -> Option<Folder> {
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
    fn new(name: &str, features: u64, devices: impl FnOnce(&Path) -> DeviceSpecs) -> Option<Bench> {
        let folder = Folder::new(name)?;
        let spec = spec(&folder.0, devices(&folder.0));
        let vsock = spec.devices.vsock.as_ref();
        let program = vsock.and_then(|vsock| {
            let path = format!("{}_{HOST_PORT}", vsock.socket.display());
            let listener = UnixListener::bind(path).ok()?;
            listener.set_nonblocking(true).ok().map(|()| listener)
        });
        let ports = MachinePorts {
            net: Vec::new(),
            serial: Arc::new(StreamPort::new(std::io::sink())),
            vsock: vsock.map(|vsock| VsockLink::bind(vsock, Arc::new(DirectPort))).transpose().ok()?,
            consoles: spec.devices.consoles.iter().map(ConsoleLink::direct).collect::<Result<_, _>>().ok()?,
        };
        let machine = Machine::build(&spec, ports).ok()?;
        let rig = Rig::new(machine, 0, features);
        let mut fresh = Vec::new();
        rig.device.pause();
        rig.machine.save_state(&mut fresh).ok()?;
        Some(Bench { rig, fresh, program, _folder: folder })
    }

    fn run(&mut self, data: &[u8]) {
        self.rig.device.pause();
        self.rig.machine.restore_state(&self.fresh, RestoreOptions::default()).expect("its own state");
        wipe(&self.rig);
        self.rig.start();
        drive(&mut self.rig, data);
        while self.program.as_ref().is_some_and(|program| program.accept().is_ok()) {}
    }
}

thread_local! {
    static VSOCK: RefCell<Option<Bench>> = RefCell::new(Bench::new("vsock", 0, |folder| {
        let vsock = VsockSpec { cid: 3, socket: folder.join("socket") };
        DeviceSpecs { vsock: Some(vsock), ..DeviceSpecs::default() }
    }));
    static CONSOLE: RefCell<Option<Bench>> = RefCell::new(Bench::new("console", 3, |folder| {
        let port = |name: &str| ConsoleSpec { name: name.to_owned(), socket: folder.join(name) };
        DeviceSpecs { consoles: vec![port("hvc"), port("agent")], ..DeviceSpecs::default() }
    }));
}

/// Drives the socket device by the script `data`.
pub fn fuzz_vsock(data: &[u8]) {
    VSOCK.with_borrow_mut(|bench| bench.iter_mut().for_each(|bench| bench.run(data)));
}

/// Drives the paravirtual console by the script `data`.
pub fn fuzz_console(data: &[u8]) {
    CONSOLE.with_borrow_mut(|bench| bench.iter_mut().for_each(|bench| bench.run(data)));
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
        let console =
            CONSOLE.with_borrow(|bench| bench.as_ref().unwrap().rig.machine.metrics().console.unwrap());
        assert!(console.tx_bytes >= 9, "{console:?}");
    }
}
