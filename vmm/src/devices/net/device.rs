//! The card: its registers, which queue is whose, and the lock around everything that changes.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::header::{Offloads, PACKET_BYTES_MAX};
use super::persist::NetSaved;
use super::{NetMetrics, NicPort};
use crate::devices::rate::Limiter;
use crate::kvm::KvmError;
use crate::limits::RX_BACKLOG_FRAMES;
use crate::spec::{MacAddress, NetSpec};
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::virtio::{Blueprint, ChainError, DeviceType, Function, Io, Place, Turn, read_image};

const DEVICE_TYPE: u16 = 1;
const CLASS_ETHERNET: [u8; 3] = [2, 0, 0];
/// The longest packet, and one byte that a longer one spills into.
const PACKET_BUFFER_BYTES: usize = PACKET_BYTES_MAX + 1;

/// Offered by every card.
const ALWAYS: [u32; 5] = [
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MRG_RXBUF,
];
/// What frames from the guest may leave to be done: as [`Offloads::of`] has it.
const FROM_GUEST: [u32; 4] =
    [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN];
/// What frames for the guest may leave to be done.
const FOR_GUEST: [u32; 4] =
    [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_ECN];

/// The receive queue of a pair.
pub(crate) const fn rx(pair: u16) -> u16 {
    2 * pair
}

/// The transmit queue of a pair.
pub(crate) const fn tx(pair: u16) -> u16 {
    2 * pair + 1
}

/// Queues of a card with that many pairs: the last is the control queue.
pub(crate) const fn queues(pairs: u16) -> u16 {
    2 * pairs + 1
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Frames for the guest, by that pair.
    Receive(u16),
    /// Frames from the guest.
    Transmit(u16),
    Control,
    /// Nothing, with the driver there is.
    Unused,
}

/// What becomes of the tap's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reception {
    /// They are discarded.
    Off,
    /// The guest gets them.
    On,
    /// As `On`; and while the machine is paused the port sees them at once, in case the guest goes on elsewhere.
    Ahead,
}

/// A network card.
pub(crate) type Nic = Function<Net>;

/// What is behind the card's transport.
pub(crate) struct Net {
    pub(super) mac: MacAddress,
    pub(super) attached: NicPort,
    /// Frames before those of the tap, per pair: from elsewhere, or waiting for more buffers.
    pub(super) backlogs: Vec<VecDeque<Box<[u8]>>>,
    pub(super) reception: Reception,
    /// The driver has been asked to announce itself and has not answered yet.
    pub(super) announcing: bool,
    /// Pairs of queues the driver uses.
    pub(super) pairs: u16,
    pub(super) agreed: Agreed,
    pub(super) from_guest: Limiter,
    pub(super) for_guest: Limiter,
    /// The packet in work.
    pub(super) packet: Box<[u8; PACKET_BUFFER_BYTES]>,
    /// The chains it was put into: first descriptor, bytes.
    pub(super) parts: Vec<(u16, u32)>,
    pub(super) metrics: NetMetrics,
}

/// What the driver and this device have agreed on; nothing without a driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) from_guest: Offloads,
    pub(super) for_guest: Offloads,
    /// A frame may fill several receive buffers.
    pub(super) merges: bool,
    /// Pairs of queues after the first have their places.
    pub(super) several: bool,
}

impl Agreed {
    fn with(io: &Io<'_>) -> Agreed {
        let has = |bit: u32| io.is_live() && io.transport.negotiated(bit);
        Agreed {
            from_guest: Offloads::of(FROM_GUEST.map(has)),
            for_guest: Offloads::of(FOR_GUEST.map(has)),
            merges: has(VIRTIO_NET_F_MRG_RXBUF),
            several: has(VIRTIO_NET_F_MQ),
        }
    }
}

impl Nic {
    /// A card, paused and with reception off.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds or timers cannot be had.
    pub(crate) fn attach(place: Place<'_>, spec: &NetSpec, attached: NicPort) -> Result<Nic, KvmError> {
        let blueprint = blueprint(&attached);
        let net = Net::new(spec, attached).map_err(|e| {
            let code = e.raw_os_error().unwrap_or(libc::EIO);
            crate::kvm::refused("make a timer for a card")(vmm_sys_util::errno::Error::new(code))
        })?;
        // It may have served another machine of this process.
        net.adjust_tap();
        Function::new(place, &blueprint, net)
    }

    /// Takes frames from the tap, or discards them.
    pub(crate) fn set_rx_enabled(&self, enabled: bool) {
        self.lock().device.reception = if enabled { Reception::On } else { Reception::Off };
        self.ring_all(rx);
    }

    /// Has the port see frames while the machine is paused, or no more. The guest gets them all the same, should it go on.
    pub(crate) fn set_rx_ahead(&self, ahead: bool) {
        let mut inner = self.lock();
        if inner.device.reception != Reception::Off {
            inner.device.reception = if ahead { Reception::Ahead } else { Reception::On };
        }
        drop(inner);
        self.ring_all(rx);
    }

    /// Queues a packet for the guest ahead of the tap's; false if it had to be dropped.
    pub(crate) fn inject(&self, packet: &[u8]) -> bool {
        let fits = self.with(|net, _| net.queue(packet));
        self.ring(rx(0));
        fits
    }

    /// The port has room again.
    pub(crate) fn kick(&self) {
        self.ring_all(tx);
    }

    fn ring_all(&self, queue: fn(u16) -> u16) {
        let pairs = self.lock().device.attached.tap.pairs();
        (0..pairs).for_each(|pair| self.ring(queue(pair)));
    }

    /// Asks the driver to announce its addresses to the network, if it knows how.
    pub(crate) fn announce(&self) {
        self.with(|net, io| {
            if io.is_live() && io.transport.negotiated(VIRTIO_NET_F_GUEST_ANNOUNCE) {
                net.announcing = true;
                io.transport.signal_config();
            }
        });
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> NetMetrics {
        let net = &self.lock().device;
        NetMetrics { breakdowns: self.breakdowns(), tx_lost: net.attached.tap.lost(), ..net.metrics }
    }
}

impl Net {
    fn new(spec: &NetSpec, attached: NicPort) -> io::Result<Net> {
        let pairs = usize::from(attached.tap.pairs());
        Ok(Net {
            mac: spec.mac,
            attached,
            backlogs: vec![VecDeque::new(); pairs],
            reception: Reception::Off,
            announcing: false,
            pairs: 1,
            agreed: Agreed::default(),
            from_guest: Limiter::new(spec.packets_per_s, spec.bytes_per_s)?,
            for_guest: Limiter::new(spec.packets_per_s, spec.bytes_per_s)?,
            packet: Box::new([0; PACKET_BUFFER_BYTES]),
            parts: Vec::new(),
            metrics: NetMetrics::default(),
        })
    }

    fn queue(&mut self, packet: &[u8]) -> bool {
        self.queue_for(0, packet)
    }

    /// Has a packet wait for the guest to take it by a pair; false if it had to be dropped.
    pub(super) fn queue_for(&mut self, pair: usize, packet: &[u8]) -> bool {
        let backlog = &mut self.backlogs[pair];
        let fits = packet.len() <= PACKET_BYTES_MAX && backlog.len() < RX_BACKLOG_FRAMES;
        if fits {
            backlog.push_back(packet.into());
        } else {
            self.metrics.rx_dropped += 1;
        }
        fits
    }

    /// Without several pairs agreed on, the control queue comes third on every card.
    fn role(&self, index: u16) -> Role {
        let last = if self.agreed.several { self.attached.tap.pairs() } else { 1 };
        match (index / 2, index % 2) {
            (pair, 0) if pair < self.pairs => Role::Receive(pair),
            (pair, 1) if pair < last => Role::Transmit(pair),
            (pair, 0) if pair == last => Role::Control,
            _ => Role::Unused,
        }
    }

    /// What waits for pairs of queues that are no longer in use has lost its way.
    pub(super) fn forget_unused(&mut self) {
        self.backlogs.iter_mut().skip(usize::from(self.pairs)).for_each(VecDeque::clear);
    }

    /// Has the tap do what the driver agreed to.
    fn adjust_tap(&self) {
        let tap = &self.attached.tap;
        let adjusted = tap.set_offloads(self.agreed.for_guest).and_then(|()| tap.use_pairs(self.pairs));
        if let Err(error) = adjusted {
            // Frames that ask for more than was agreed on are dropped, and those in queues not read are lost.
            tracing::error!(tap = tap.name(), %error, "a tap does not follow its guest's driver; frames will be lost");
        }
    }
}

impl DeviceType for Net {
    type Saved = NetSaved;
    const SECTION: SectionId = SectionId::Net;

    /// `struct virtio_net_config`: address, link status, pairs of queues.
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        let announce = if self.announcing { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP | announce).unwrap_or(0);
        let mut image = [0; 10];
        image[..6].copy_from_slice(&self.mac.0);
        image[6..8].copy_from_slice(&status.to_le_bytes());
        image[8..].copy_from_slice(&self.attached.tap.pairs().to_le_bytes());
        read_image(&image, offset, into);
    }

    fn serve(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        match self.role(index) {
            Role::Receive(pair) if self.reception == Reception::Off => Ok(self.discard(pair)),
            Role::Receive(pair) => self.receive(pair, io),
            Role::Transmit(pair) => self.transmit(pair, io),
            Role::Control => self.control(index, io),
            Role::Unused => Ok(Turn::Idle),
        }
    }

    fn serve_paused(&mut self, index: u16) -> Option<Turn> {
        match self.role(index) {
            Role::Receive(pair) => match self.reception {
                Reception::Off => Some(self.discard(pair)),
                Reception::Ahead => Some(self.take_ahead(pair)),
                Reception::On => None,
            },
            _ => None,
        }
    }

    fn without_driver(&mut self, index: u16) -> Turn {
        match self.role(index) {
            Role::Receive(pair) => self.discard(pair),
            _ => Turn::Idle,
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        let timers = [&self.from_guest, &self.for_guest].map(AsRawFd::as_raw_fd);
        self.attached.tap.sources().chain(timers).collect()
    }

    /// Each queue of the tap leads to the pair's; a timer to all that may have waited for it.
    fn queues_of_source(&self, source: u16) -> Range<u16> {
        let pairs = self.attached.tap.pairs();
        if source < pairs { rx(source)..rx(source) + 1 } else { 0..rx(pairs) }
    }

    fn reset(&mut self, _: &mut Io<'_>) {
        self.announcing = false;
        self.pairs = 1;
    }

    fn follow_driver(&mut self, io: &mut Io<'_>) {
        self.agreed = Agreed::with(io);
        if !self.agreed.several {
            self.pairs = 1;
        }
        self.forget_unused();
        self.adjust_tap();
    }

    fn save(&self, out: &mut Payload<'_>) {
        self.save_own(out);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<NetSaved, StateError> {
        NetSaved::decode(fields)
    }

    fn restore(&mut self, saved: &NetSaved) {
        self.restore_own(saved);
    }
}

fn blueprint(attached: &NicPort) -> Blueprint {
    let pairs = attached.tap.pairs();
    let offloads = [FROM_GUEST, FOR_GUEST].concat();
    let offloads = offloads.iter().filter(|_| attached.tap.offers_offloads());
    let several = [VIRTIO_NET_F_MQ];
    let several = several.iter().filter(|_| pairs > 1);
    Blueprint {
        device_type: DEVICE_TYPE,
        class: CLASS_ETHERNET,
        features: ALWAYS.iter().chain(offloads).chain(several).fold(0, |all, bit| all | 1 << bit),
        queues: queues(pairs),
    }
}
