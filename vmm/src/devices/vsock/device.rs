//! The device: its registers and what it keeps.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;

use super::connection::{Connection, Key};
use super::host::Host;
use super::packet::{HEADER_BYTES, Header};
use super::port::{LinkId, Order};
use super::{VsockLink, VsockMetrics};
use crate::kvm::KvmError;
use crate::limits::VSOCK_BUFFER_BYTES;
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::virtio::{Blueprint, ChainError, DeviceType, Function, Io, Place, Turn, read_image};

/// Queue numbers.
pub(crate) const RX: u16 = 0;
pub(crate) const TX: u16 = 1;
pub(crate) const EVENT: u16 = 2;
const QUEUES: u16 = 3;

const DEVICE_TYPE: u16 = 19;
const CLASS_COMMUNICATION_OTHER: [u8; 3] = [7, 0x80, 0];
/// Header and the longest payload.
const PACKET_BYTES: usize = HEADER_BYTES + VSOCK_BUFFER_BYTES as usize;

/// The socket device in its slot.
pub(crate) type VsockDevice = Function<Vsock>;

/// What is behind the transport.
pub(crate) struct Vsock {
    pub(super) cid: u64,
    pub(super) host: Host,
    pub(super) connections: HashMap<LinkId, Connection>,
    pub(super) by_key: HashMap<Key, LinkId>,
    /// Connections that may have something to say, each once.
    pub(super) ready: VecDeque<LinkId>,
    /// RSTs for the guest.
    pub(super) resets: VecDeque<Header>,
    /// Orders that the port had no room for.
    pub(super) stalled: VecDeque<Order>,
    /// The driver is to be told that all connections are gone.
    pub(super) reset_owed: bool,
    /// Number of the next host port given to a program.
    pub(super) next_port: u32,
    /// Header and payload in work.
    pub(super) packet: Box<[u8]>,
    pub(super) metrics: VsockMetrics,
}

impl Vsock {
    /// A device of the guest `cid`.
    ///
    /// # Errors
    /// When the kernel grants no poll set or eventfd.
    pub(crate) fn new(cid: u32, attached: VsockLink) -> io::Result<Vsock> {
        Ok(Vsock {
            cid: u64::from(cid),
            host: Host::new(attached)?,
            connections: HashMap::new(),
            by_key: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            stalled: VecDeque::new(),
            reset_owed: false,
            next_port: 0,
            packet: vec![0; PACKET_BYTES].into(),
            metrics: VsockMetrics::default(),
        })
    }

    /// Forgets the guest's side of everything.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.by_key.clear();
        self.ready.clear();
        self.resets.clear();
        self.stalled.clear();
        self.reset_owed = false;
    }
}

impl VsockDevice {
    /// Puts the device into its slot, paused.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn attach(place: Place<'_>, vsock: Vsock) -> Result<VsockDevice, KvmError> {
        let blueprint = Blueprint {
            device_type: DEVICE_TYPE,
            class: CLASS_COMMUNICATION_OTHER,
            features: 0,
            queues: QUEUES,
        };
        Function::new(place, &blueprint, vsock)
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> VsockMetrics {
        let inner = self.lock();
        let connections = inner.device.connections.len() as u64;
        VsockMetrics { connections, breakdowns: self.breakdowns(), ..inner.device.metrics }
    }
}

impl DeviceType for Vsock {
    type Saved = ();
    const SECTION: SectionId = SectionId::Vsock;

    /// `struct virtio_vsock_config`: the guest's context id.
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        read_image(&self.cid.to_le_bytes(), offset, into);
    }

    fn serve(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        match index {
            EVENT => self.tell_of_reset(io),
            _ => self.turn(io),
        }
    }

    fn without_driver(&mut self, index: u16) -> Turn {
        if index == RX && self.attend(false) { Turn::More } else { Turn::Idle }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.host.fd()]
    }

    fn queues_of_source(&self, _: u16) -> Range<u16> {
        RX..RX + 1
    }

    fn reset(&mut self, _: &mut Io<'_>) {
        self.clear();
        let link = self.host.new_link();
        self.order(Order::CloseBelow { link });
    }

    fn make_up(&mut self, io: &mut Io<'_>) {
        self.reset_owed = io.is_live();
    }

    fn save(&self, _: &mut Payload<'_>) {}

    fn decode(_: &mut Fields<'_>) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&mut self, (): &()) {
        self.forget();
    }
}
