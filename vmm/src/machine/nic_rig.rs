//! A machine with one network card, and a driver of it that does as it pleases.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::{Machine, MachinePorts};
use crate::devices::net::{HEADER_BYTES, NetPort, Nic, NicPort, Tap, Transmit, frame_of, rx, tx};
use crate::devices::serial::StreamPort;
use crate::spec::{DeviceSpecs, NetSpec};
use crate::virtio::VirtioDevice;
use crate::virtio::rig::{self, BUFFERS, NEEDS_RESET, NEXT, Rig, WRITE};

/// Queues of a card with one pair.
pub(super) const RX: u16 = rx(0);
pub(super) const TX: u16 = tx(0);
pub(super) const CTRL: u16 = 2;
/// MAC, status, control queue, announcements.
pub(super) const FEATURES: u64 = 1 << 5 | 1 << 16 | 1 << 17 | 1 << 21;
/// Checksums and segmentation of both directions.
pub(super) const OFFLOADS: u64 = 0b11_1011_1000_0011;
/// A frame may fill several receive buffers.
pub(super) const MERGE: u64 = 1 << 15;
/// Several pairs of queues.
pub(super) const SEVERAL: u64 = 1 << 22;

/// What passes the card's port.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) sent: Mutex<Vec<(u16, Vec<u8>)>>,
    pub(super) delivered: Mutex<Vec<Vec<u8>>>,
    pub(super) full: AtomicBool,
}

impl NetPort for Recorder {
    fn transmit(&self, pair: u16, packet: &[u8]) -> Transmit {
        if self.full.load(Ordering::SeqCst) {
            return Transmit::Full;
        }
        self.sent.lock().unwrap().push((pair, packet.to_vec()));
        Transmit::Taken
    }

    fn deliver(&self, packet: &[u8]) {
        self.delivered.lock().unwrap().push(packet.to_vec());
    }
}

/// What a card is made of.
pub(super) struct Made {
    pub(super) spec: NetSpec,
    /// The wire has headers, as a tap has.
    pub(super) headers: bool,
    /// What the driver agrees to.
    pub(super) features: u64,
}

impl Default for Made {
    fn default() -> Made {
        let spec = NetSpec::plain("none", "02:00:00:00:00:01".parse().unwrap());
        Made { spec, headers: false, features: FEATURES }
    }
}

impl Made {
    /// With headers, and the driver agreeing to `features` besides the usual.
    pub(super) fn with_headers(features: u64) -> Made {
        Made { headers: true, features: FEATURES | features, ..Made::default() }
    }
}

/// A machine with one card, and the driver of it.
pub(super) struct Driver {
    rig: Rig,
    pub(super) port: Arc<Recorder>,
    /// The far ends of the tap's queues.
    pub(super) wires: Vec<UnixDatagram>,
    pub(super) tap: Arc<Tap>,
}

impl std::ops::Deref for Driver {
    type Target = Rig;

    fn deref(&self) -> &Rig {
        &self.rig
    }
}

impl std::ops::DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut Rig {
        &mut self.rig
    }
}

impl Driver {
    /// `None`, with a word about it, where there is no KVM.
    pub(super) fn new() -> Option<Driver> {
        Driver::of(Made::default())
    }

    pub(super) fn of(made: Made) -> Option<Driver> {
        let pairs = (0..made.spec.queues).map(|_| UnixDatagram::pair().unwrap());
        let (wires, mut ends): (Vec<_>, Vec<_>) = pairs.unzip();
        ends.iter().for_each(|end| end.set_nonblocking(true).unwrap());
        let tap = if made.headers {
            Tap::pretended(ends.into_iter().map(OwnedFd::from).collect(), "wire")
        } else {
            Tap::from_fd(OwnedFd::from(ends.remove(0)), "wire")
        };
        Driver::on(made, tap, wires)
    }

    /// On a tap at hand.
    pub(super) fn on(made: Made, tap: Tap, wires: Vec<UnixDatagram>) -> Option<Driver> {
        if let Err(error) = crate::kvm::open() {
            println!("SKIPPED: {error}");
            return None;
        }
        let (port, tap) = (Arc::new(Recorder::default()), Arc::new(tap));
        let attached = NicPort { tap: Arc::clone(&tap), port: Arc::clone(&port) as Arc<dyn NetPort> };
        let mut spec = rig::spec(DeviceSpecs::default());
        spec.net = vec![made.spec];
        let ports = MachinePorts {
            net: vec![attached],
            ..MachinePorts::none(Arc::new(StreamPort::new(std::io::sink())))
        };
        let machine = Machine::build(&spec, ports).unwrap();
        Some(Driver { rig: Rig::new(machine, 0, made.features), port, wires, tap })
    }

    pub(super) fn nic(&self) -> Arc<Nic> {
        Arc::clone(&self.machine.nics()[0])
    }

    /// Offers a frame with an empty header in a buffer of its own.
    pub(super) fn send(&mut self, head: u16, frame: &[u8]) {
        self.send_packet(TX, head, &[0; HEADER_BYTES], frame);
    }

    /// Offers a frame with `header` before it, in page `head` and those that follow.
    pub(super) fn send_packet(&mut self, queue: u16, head: u16, header: &[u8], frame: &[u8]) {
        let at = BUFFERS + 0x1000 * u64::from(head);
        self.ram().memory().write_slice(header, GuestAddress(at)).unwrap();
        self.ram().memory().write_slice(frame, GuestAddress(at + 64)).unwrap();
        let header = u32::try_from(header.len()).unwrap();
        self.describe(queue, head, (at, header, NEXT, head + 1));
        self.describe(queue, head + 1, (at + 64, u32::try_from(frame.len()).unwrap(), 0, 0));
        self.offer(queue, head);
    }

    /// Offers a receive buffer of 2 KiB; returns its address.
    pub(super) fn receive(&mut self, head: u16) -> u64 {
        self.receive_by(RX, head)
    }

    /// As [`Driver::receive`], in a queue.
    pub(super) fn receive_by(&mut self, queue: u16, head: u16) -> u64 {
        let at = BUFFERS + 0x1000 * u64::from(head);
        self.describe(queue, head, (at, 2048, WRITE, 0));
        self.offer(queue, head);
        at
    }

    /// Frames that passed the port on their way out.
    pub(super) fn sent(&self) -> Vec<Vec<u8>> {
        let sent = self.port.sent.lock().unwrap();
        sent.iter().map(|(_, packet)| frame_of(packet).to_vec()).collect()
    }

    /// Frames that passed the port on their way in.
    pub(super) fn delivered(&self) -> Vec<Vec<u8>> {
        self.port.delivered.lock().unwrap().iter().map(|packet| frame_of(packet).to_vec()).collect()
    }

    /// The device's answer to a command in queue `queue`.
    pub(super) fn command(&mut self, queue: u16, bytes: &[u8]) -> u8 {
        let length = u32::try_from(bytes.len()).unwrap();
        self.put(BUFFERS, bytes);
        self.put(BUFFERS + 64, &[0xee]);
        let before = self.used(queue);
        self.chain(queue, 0, &[(BUFFERS, length, false), (BUFFERS + 64, 1, true)]);
        assert_eq!(self.used(queue), before + 1, "answered");
        self.get(BUFFERS + 64, 1)[0]
    }

    /// The device has stopped, counts it once, keeps quiet, and works again after a reset.
    pub(super) fn assert_stopped_then_recovers(&mut self, what: &str) {
        assert_eq!(self.status() & NEEDS_RESET, NEEDS_RESET, "{what}: the driver is told");
        let broken = self.nic().metrics().breakdowns;
        self.nic().serve(TX);
        self.nic().serve(RX);
        assert_eq!(self.nic().metrics().breakdowns, broken, "{what}: said once");
        let before = self.sent().len();
        self.start();
        self.send(0, &[1; 60]);
        assert_eq!(self.sent().len(), before + 1, "{what}: recovers");
    }
}

/// Waits until the machine's own threads have brought something about.
pub(super) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
