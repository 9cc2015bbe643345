//! The card: its registers, and the lock around everything that changes.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::persist::NetSaved;
use super::{NetMetrics, NicPort};
use crate::kvm::KvmError;
use crate::limits::{FRAME_BYTES_MAX, RX_BACKLOG_FRAMES};
use crate::spec::MacAddress;
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::virtio::{Blueprint, ChainError, DeviceType, Function, Io, Place, Turn, read_image};

/// Queue numbers of a network device.
pub(crate) const RX: u16 = 0;
pub(crate) const TX: u16 = 1;
pub(crate) const CTRL: u16 = 2;
/// Queues of a card.
pub(crate) const QUEUES: u16 = 3;

const DEVICE_TYPE: u16 = 1;
const CLASS_ETHERNET: [u8; 3] = [2, 0, 0];
/// Bytes of `struct virtio_net_hdr_v1` before each frame.
pub(super) const HEADER_BYTES: usize = 12;
/// Header, the longest frame, and one byte that a longer one spills into.
const FRAME_BUFFER_BYTES: usize = HEADER_BYTES + FRAME_BYTES_MAX + 1;

/// A network card.
pub(crate) type Nic = Function<Net>;

/// What is behind the card's transport.
pub(crate) struct Net {
    pub(super) mac: MacAddress,
    pub(super) attached: NicPort,
    /// Frames from elsewhere, before those of the tap.
    pub(super) backlog: VecDeque<Box<[u8]>>,
    pub(super) rx_enabled: bool,
    /// The driver has been asked to announce itself and has not answered yet.
    pub(super) announcing: bool,
    /// Header and frame in work.
    pub(super) frame: Box<[u8; FRAME_BUFFER_BYTES]>,
    pub(super) metrics: NetMetrics,
}

impl Nic {
    /// A card, paused and with reception off.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn attach(place: Place<'_>, mac: MacAddress, attached: NicPort) -> Result<Nic, KvmError> {
        let net = Net {
            mac,
            attached,
            backlog: VecDeque::with_capacity(RX_BACKLOG_FRAMES),
            rx_enabled: false,
            announcing: false,
            frame: Box::new([0; FRAME_BUFFER_BYTES]),
            metrics: NetMetrics::default(),
        };
        Function::new(place, &blueprint(), net)
    }

    /// Takes frames from the tap, or discards them.
    pub(crate) fn set_rx_enabled(&self, enabled: bool) {
        self.lock().device.rx_enabled = enabled;
        self.ring(RX);
    }

    /// Queues a frame for the guest ahead of the tap's; false if it had to be dropped.
    pub(crate) fn inject(&self, frame: &[u8]) -> bool {
        let fits = self.with(|net, _| net.queue(frame));
        self.ring(RX);
        fits
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
        NetMetrics { breakdowns: self.breakdowns(), ..self.lock().device.metrics }
    }
}

impl Net {
    fn queue(&mut self, frame: &[u8]) -> bool {
        let fits = frame.len() <= FRAME_BYTES_MAX && self.backlog.len() < RX_BACKLOG_FRAMES;
        if fits {
            self.backlog.push_back(frame.into());
        } else {
            self.metrics.rx_dropped += 1;
        }
        fits
    }
}

impl DeviceType for Net {
    type Saved = NetSaved;
    const SECTION: SectionId = SectionId::Net;

    /// `struct virtio_net_config`: address, link status.
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        let announce = if self.announcing { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP | announce).unwrap_or(0);
        let mut image = [0; 8];
        image[..6].copy_from_slice(&self.mac.0);
        image[6..].copy_from_slice(&status.to_le_bytes());
        read_image(&image, offset, into);
    }

    fn serve(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        match index {
            RX if !self.rx_enabled => Ok(self.discard()),
            RX => self.receive(io),
            TX => self.transmit(io),
            _ => self.control(io),
        }
    }

    fn serve_paused(&mut self, index: u16) -> Option<Turn> {
        (index == RX && !self.rx_enabled).then(|| self.discard())
    }

    fn without_driver(&mut self, index: u16) -> Turn {
        if index == RX { self.discard() } else { Turn::Idle }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.attached.tap.as_raw_fd()]
    }

    fn queue_of_source(&self, _: u16) -> Option<u16> {
        Some(RX)
    }

    fn reset(&mut self, _: &mut Io<'_>) {
        self.announcing = false;
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

fn blueprint() -> Blueprint {
    let bits = [VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE]
        .map(|b| 1u64 << b);
    Blueprint {
        device_type: DEVICE_TYPE,
        class: CLASS_ETHERNET,
        features: bits.iter().fold(0, |all, bit| all | bit),
        queues: QUEUES,
    }
}
