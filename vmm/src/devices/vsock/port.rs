//! The way out of the VM for what the guest does to its connections.
//!
//! Everything a host program can notice of the guest is an [`Order`]: a connection made, bytes, an end. The device hands
//! orders to its port one by one; the port lets each be carried out when it may be noticed. Carrying out only queues the
//! order for the device's thread, so it may be done under any lock and from any thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::devices::listener::{HostListener, SocketError};
use crate::devices::net::Transmit;
use crate::irq;
use crate::limits::VSOCK_ORDER_BYTES;
use crate::spec::VsockSpec;

/// Bytes of `_N` with the largest port.
const SUFFIX_BYTES: usize = 11;

/// A connection's number on the host's side; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LinkId(pub(super) u64);

/// What is to be done for the guest, in the order it was said.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Connect with the program behind host port `port`.
    Connect { link: LinkId, port: u32 },
    /// Tell the program that the guest has accepted; it is `port` to the guest.
    Accept { link: LinkId, port: u32 },
    /// Pass bytes on.
    Write { link: LinkId, bytes: Arc<[u8]> },
    /// After what was written, no more follows.
    EndWrites { link: LinkId },
    /// Nothing more is read.
    EndReads { link: LinkId },
    /// Close after what was written.
    Finish { link: LinkId },
    /// Close at once.
    Close { link: LinkId },
    /// Close everything numbered below.
    CloseBelow { link: LinkId },
}

impl Order {
    /// Bytes it occupies while it waits.
    pub(super) fn weight(&self) -> usize {
        VSOCK_ORDER_BYTES + if let Order::Write { bytes, .. } = self { bytes.len() } else { 0 }
    }
}

/// Orders that may be carried out, and the bell for the thread that does so. Bounded by what the device lets wait.
#[derive(Debug)]
pub(super) struct Released {
    orders: Mutex<VecDeque<Order>>,
    pub(super) bell: EventFd,
}

impl Released {
    pub(super) fn new(bell: EventFd) -> Released {
        Released { orders: Mutex::default(), bell }
    }

    pub(super) fn pop(&self) -> Option<Order> {
        self.lock().pop_front()
    }

    fn push(&self, order: Order) {
        self.lock().push_back(order);
        irq::raise(&self.bell);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Order>> {
        // A queue is whole whatever its holder did.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something the guest did that programs of the host will notice once it is carried out. Dropped, it never happens.
#[derive(Debug)]
pub struct Deed {
    pub(super) order: Order,
    pub(super) to: Arc<Released>,
}

impl Deed {
    /// Bytes it occupies while it waits.
    pub fn weight(&self) -> usize {
        self.order.weight()
    }

    /// Lets it happen. Never waits.
    pub fn carry_out(self) {
        self.to.push(self.order);
    }
}

/// What the guest's deeds pass on their way out. Called from the device thread with the device locked: it must not wait,
/// and while the machine is paused no call comes.
pub trait VsockPort: Send + Sync {
    /// Takes a deed and carries it out when it may be noticed, all deeds in the order of the calls. `Full`: the device
    /// takes nothing more from the guest until `Machine::kick_vsock` and then offers the same deed again.
    fn offer(&self, deed: Deed) -> Transmit;
}

/// Carries everything out at once: an unprotected VM.
#[derive(Clone, Copy, Debug)]
pub struct DirectPort;

impl VsockPort for DirectPort {
    fn offer(&self, deed: Deed) -> Transmit {
        deed.carry_out();
        Transmit::Taken
    }
}

/// What a socket device is attached to.
#[derive(Clone)]
pub struct VsockLink {
    /// Where programs of the host connect; the guest reaches port N of the host at the same path with `_N` appended.
    pub listener: Arc<HostListener>,
    /// Where the guest's deeds go.
    pub port: Arc<dyn VsockPort>,
}

impl VsockLink {
    /// Listens at the spec's socket.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(spec: &VsockSpec, port: Arc<dyn VsockPort>) -> Result<VsockLink, SocketError> {
        Ok(VsockLink { listener: Arc::new(HostListener::bind(&spec.socket, SUFFIX_BYTES)?), port })
    }
}

impl std::fmt::Debug for VsockLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VsockLink").field("listener", &self.listener).finish_non_exhaustive()
    }
}
