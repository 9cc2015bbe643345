//! The card: its registers, and the lock around everything that changes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_ioctls::VmFd;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::eventfd::EventFd;

use super::metrics::{Counters, add};
use super::{NetMetrics, NicPort};
use crate::arch::layout;
use crate::irq::{self, IrqRouter};
use crate::kvm::KvmError;
use crate::limits::{FRAME_BYTES_MAX, RX_BACKLOG_FRAMES};
use crate::memory::GuestRam;
use crate::pci::PciFunction;
use crate::spec::MacAddress;
use crate::virtio::{Action, BAR_BYTES, Blueprint, Chain, Transport};

/// Queue numbers of a network device.
pub(crate) const RX: u16 = 0;
pub(crate) const TX: u16 = 1;
pub(crate) const CTRL: u16 = 2;
pub(super) const QUEUES: u16 = 3;

const DEVICE_TYPE: u16 = 1;
const CLASS_ETHERNET: [u8; 3] = [2, 0, 0];
/// Bytes of `struct virtio_net_hdr_v1` before each frame.
pub(super) const HEADER_BYTES: usize = 12;
/// Header, the longest frame, and one byte that a longer one spills into.
const FRAME_BUFFER_BYTES: usize = HEADER_BYTES + FRAME_BYTES_MAX + 1;

/// A network card.
pub(crate) struct Nic {
    number: u16,
    ram: Arc<GuestRam>,
    /// Base of BAR 0, or 0: readable without the lock.
    window: AtomicU64,
    doorbells: [EventFd; QUEUES as usize],
    pub(super) counters: Counters,
    inner: Mutex<Inner>,
}

/// What changes.
pub(super) struct Inner {
    pub(super) transport: Transport,
    pub(super) mac: MacAddress,
    pub(super) attached: NicPort,
    /// Frames from elsewhere, before those of the tap.
    pub(super) backlog: VecDeque<Box<[u8]>>,
    pub(super) rx_enabled: bool,
    pub(super) paused: bool,
    /// Queues that were notified while paused.
    pub(super) owed: [bool; QUEUES as usize],
    /// The driver has been asked to announce itself and has not answered yet.
    pub(super) announcing: bool,
    pub(super) chain: Box<Chain>,
    /// Header and frame in work.
    pub(super) frame: Box<[u8; FRAME_BUFFER_BYTES]>,
}

impl std::fmt::Debug for Nic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nic")
            .field("number", &self.number)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl Nic {
    /// Card `number`, paused and with reception off.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn new(
        number: u16,
        mac: MacAddress,
        attached: NicPort,
        ram: Arc<GuestRam>,
        vm: &Arc<VmFd>,
        router: &Arc<IrqRouter>,
    ) -> Result<Nic, KvmError> {
        let transport = Transport::new(vm, router, &blueprint(number))?;
        let doorbell = |queue| {
            let copy = transport.doorbell(queue).try_clone();
            copy.map_err(|e| crate::kvm::refused("share an eventfd")(errno_of(&e)))
        };
        let nic = Nic {
            number,
            ram,
            window: AtomicU64::new(transport.bar_base()),
            doorbells: [doorbell(RX)?, doorbell(TX)?, doorbell(CTRL)?],
            counters: Counters::default(),
            inner: Mutex::new(Inner {
                transport,
                mac,
                attached,
                backlog: VecDeque::with_capacity(RX_BACKLOG_FRAMES),
                rx_enabled: false,
                paused: true,
                owed: [false; QUEUES as usize],
                announcing: false,
                chain: Box::new(Chain::new()),
                frame: Box::new([0; FRAME_BUFFER_BYTES]),
            }),
        };
        Ok(nic)
    }

    /// Which card of the machine it is.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Signalled when queue `index` wants service.
    pub(crate) fn doorbell(&self, index: u16) -> &EventFd {
        &self.doorbells[usize::from(index)]
    }

    /// What it is attached to.
    pub(crate) fn attached(&self) -> NicPort {
        self.lock().attached.clone()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a card's code does not panic, whatever the guest does")
    }

    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Has queue `index` served soon.
    pub(crate) fn ring(&self, index: u16) {
        irq::raise(self.doorbell(index));
    }

    /// Holds still. On return no frame is on its way through the card.
    pub(crate) fn pause(&self) {
        self.lock().paused = true;
    }

    /// Goes on, with what is owed.
    pub(crate) fn resume(&self) {
        let owed = {
            let mut inner = self.lock();
            inner.paused = false;
            std::mem::take(&mut inner.owed)
        };
        for (queue, _) in (0..QUEUES).zip(owed).filter(|(_, owed)| *owed) {
            self.ring(queue);
        }
    }

    /// Takes frames from the tap, or discards them.
    pub(crate) fn set_rx_enabled(&self, enabled: bool) {
        self.lock().rx_enabled = enabled;
        self.ring(RX);
    }

    /// Queues a frame for the guest ahead of the tap's; false if it had to be dropped.
    pub(crate) fn inject(&self, frame: &[u8]) -> bool {
        let mut inner = self.lock();
        let fits = frame.len() <= FRAME_BYTES_MAX && inner.backlog.len() < RX_BACKLOG_FRAMES;
        if fits {
            inner.backlog.push_back(frame.into());
        } else {
            add(&self.counters.rx_dropped, 1);
        }
        drop(inner);
        self.ring(RX);
        fits
    }

    /// Asks the driver to announce its addresses to the network, if it knows how.
    pub(crate) fn announce(&self) {
        let mut inner = self.lock();
        if inner.transport.is_live() && inner.transport.negotiated(VIRTIO_NET_F_GUEST_ANNOUNCE) {
            inner.announcing = true;
            inner.transport.signal_config();
        }
    }

    /// After a restore: whatever was under way at the cut is made up for.
    pub(crate) fn make_up(&self) {
        let mut inner = self.lock();
        inner.owed = [true; QUEUES as usize];
        inner.transport.signal_all();
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> NetMetrics {
        self.counters.snapshot()
    }

    pub(super) fn follow_window(&self, inner: &Inner) {
        self.window.store(inner.transport.bar_base(), Ordering::Release);
    }
}

impl Inner {
    /// `struct virtio_net_config`: address, link status.
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        let announce = if self.announcing { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP | announce).unwrap_or(0);
        let mut image = [0; 8];
        image[..6].copy_from_slice(&self.mac.0);
        image[6..].copy_from_slice(&status.to_le_bytes());
        for (byte, at) in into.iter_mut().zip(offset..) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }
}

impl PciFunction for Nic {
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        self.lock().transport.config_read(offset, into);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut inner = self.lock();
        inner.transport.config_write(offset, data);
        self.follow_window(&inner);
    }

    fn claims(&self, address: u64) -> Option<u64> {
        let base = self.window.load(Ordering::Acquire);
        let offset = address.checked_sub(base)?;
        (base != 0 && offset < u64::from(BAR_BYTES)).then_some(offset)
    }

    fn memory_read(&self, offset: u64, into: &mut [u8]) {
        let mut inner = self.lock();
        let mut wanted = None;
        inner.transport.bar_read(offset, into, |at, _| wanted = Some(at));
        if let Some(at) = wanted {
            inner.config_read(at, into);
        }
    }

    fn memory_write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        match inner.transport.bar_write(offset, data, self.ram.memory()) {
            Some(Action::Reset) => inner.announcing = false,
            Some(Action::Ready) => {
                drop(inner);
                (0..QUEUES).for_each(|queue| self.ring(queue));
            }
            Some(Action::Notify(queue)) => {
                drop(inner);
                self.ring(queue);
            }
            None => {}
        }
    }
}

fn bar(number: u16) -> u32 {
    layout::PCI_WINDOW.0 + layout::PCI_SLOT_STRIDE * u32::from(number)
}

fn blueprint(number: u16) -> Blueprint {
    let bits = [VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE]
        .map(|b| 1u64 << b);
    Blueprint {
        device_type: DEVICE_TYPE,
        class: CLASS_ETHERNET,
        features: bits.iter().fold(0, |all, bit| all | bit),
        queues: QUEUES,
        bar: bar(number),
    }
}

fn errno_of(error: &std::io::Error) -> vmm_sys_util::errno::Error {
    vmm_sys_util::errno::Error::new(error.raw_os_error().unwrap_or(libc::EIO))
}
