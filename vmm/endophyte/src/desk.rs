//! What the API may see and order of this process, whatever its role; it changes hands with the role.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

use endophyte_api::SnapshotProgress;
use endophyte_vmm::machine::Machine;
use endophyte_vmm::spec::VmSpec;
use mycelium_ram::active::HandedOver;
use mycelium_ram_core::NodeId;
use mycelium_ram_core::mode::Mode;
use mycelium_ram_core::pace::Pace;
use rhizomorph_link::{AllowList, PeerKey, Ticket};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;

use crate::console::Tape;
use crate::create;
use crate::migrate;
use crate::plug::Plug;
use crate::replicas::Replicas;
use crate::rundir::Status;
use crate::signals::Stopper;

/// The node keys that may connect to a passive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed(Arc<RwLock<BTreeSet<[u8; 32]>>>);

impl Allowed {
    pub(crate) fn set(&self, keys: impl IntoIterator<Item = PeerKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys.into_iter().map(|k| k.0).collect();
    }

    pub(crate) fn keys(&self) -> Vec<PeerKey> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|key| PeerKey(*key)).collect()
    }

    /// Asked at every handshake.
    pub(crate) fn list(&self) -> AllowList {
        let keys = self.0.clone();
        AllowList::from_fn(move |key| keys.read().unwrap_or_else(PoisonError::into_inner).contains(&key.0))
    }
}

/// The guest, while this process runs it.
pub(crate) struct Hands {
    pub(crate) machine: Weak<Machine>,
    /// Stops the guest, or lets it go on; the board tells when.
    pub(crate) hold: Box<dyn Fn(bool) + Send>,
    /// Takes orders that only a VM without protection can carry out.
    pub(crate) order: Option<Box<dyn Fn(Order) + Send>>,
    /// What only a protected VM can be told.
    pub(crate) protection: Option<Protection>,
}

/// Orders to a VM with replicas.
pub(crate) struct Protection {
    /// Has a replica go on with it.
    pub(crate) hand_over: HandOver,
    /// Ends epochs at another pace; the board tells when.
    pub(crate) set_pace: Box<dyn Fn(Pace) + Send>,
    /// Has output wait for its epoch or not; the board tells when.
    pub(crate) set_mode: Box<dyn Fn(Mode) + Send>,
}

/// Hands the guest to a node, or to any that may have it.
pub(crate) type HandOver = Box<dyn Fn(Option<NodeId>, HandedOver) + Send>;

/// What whoever runs the machine is asked to do with it.
#[derive(Debug)]
pub(crate) enum Order {
    /// Write it to a file.
    Snapshot {
        /// The file.
        path: PathBuf,
        /// End the VM then.
        stop: bool,
        /// Hears how it goes.
        tell: Sender<Result<SnapshotProgress, tonic::Status>>,
    },
    /// Have it go on in another process.
    Migrate(migrate::Wish),
    /// Put a device in, or have the guest let go of one.
    Plug(Plug),
}

impl std::fmt::Debug for Hands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hands").finish_non_exhaustive()
    }
}

/// What a process with a node identity has besides.
#[derive(Debug)]
pub(crate) struct Peering {
    pub(crate) replicas: Replicas,
    pub(crate) allowed: Allowed,
}

/// The desk.
#[derive(Debug)]
pub(crate) struct Desk {
    /// RAM in bytes and vCPUs, once it is known which machine this is.
    size: OnceLock<(u64, u8)>,
    /// Where a machine is ordered, by a process that waits for one.
    pub(crate) orders: Option<create::Orders>,
    pub(crate) board: watch::Sender<Status>,
    pub(crate) tape: Arc<Tape>,
    pub(crate) stopper: Stopper,
    /// `None` for a VM without protection.
    pub(crate) peering: Option<Peering>,
    /// Of the migration under way.
    pub(crate) migration: migrate::Bell,
    reach: OnceLock<Ticket>,
    hands: Mutex<Option<Hands>>,
}

impl Desk {
    /// `spec` is `None` in a process that waits for `orders`.
    pub(crate) fn new(
        spec: Option<&VmSpec>,
        orders: Option<create::Orders>,
        board: watch::Sender<Status>,
        tape: Arc<Tape>,
        stopper: Stopper,
        peering: Option<Peering>,
    ) -> Arc<Self> {
        Arc::new(Self {
            size: spec.map(size_of).map(OnceLock::from).unwrap_or_default(),
            orders,
            board,
            tape,
            stopper,
            peering,
            migration: migrate::Bell::default(),
            reach: OnceLock::new(),
            hands: Mutex::default(),
        })
    }

    /// It is known which machine this is.
    pub(crate) fn is_for(&self, spec: &VmSpec) {
        let _ = self.size.set(size_of(spec));
    }

    /// RAM in bytes and vCPUs; nothing before it is known which machine this is.
    pub(crate) fn size(&self) -> Option<(u64, u8)> {
        self.size.get().copied()
    }

    /// Where a passive can be reached.
    pub(crate) fn listens(&self, key: PeerKey, addrs: &[SocketAddr]) {
        let _ = self.reach.set(Ticket { key, addrs: addrs.to_vec() });
    }

    pub(crate) fn reach(&self) -> Option<&Ticket> {
        self.reach.get()
    }

    /// This process runs the guest from now on.
    pub(crate) fn take(&self, hands: Hands) {
        *self.hands() = Some(hands);
    }

    /// The guest's machine, if it runs here.
    pub(crate) fn machine(&self) -> Option<Arc<Machine>> {
        self.hands().as_ref().and_then(|h| h.machine.upgrade())
    }

    /// Has the guest stopped or let go on. `false`: it does not run here.
    pub(crate) fn hold(&self, hold: bool) -> bool {
        self.hands().as_ref().map(|hands| (hands.hold)(hold)).is_some()
    }

    /// Hands an order over. `false`: nobody here carries it out.
    pub(crate) fn order(&self, order: Order) -> bool {
        let hands = self.hands();
        let carry_out = hands.as_ref().and_then(|hands| hands.order.as_ref());
        carry_out.map(|carry_out| carry_out(order)).is_some()
    }

    /// Has a replica go on with the guest. `false`: it does not run here, or has no protection.
    pub(crate) fn hand_over(&self, to: Option<NodeId>, tell: HandedOver) -> bool {
        let hands = self.hands();
        let protection = hands.as_ref().and_then(|hands| hands.protection.as_ref());
        protection.map(|protection| (protection.hand_over)(to, tell)).is_some()
    }

    /// Has epochs end at another pace, and output wait for them or not. `false`: the guest does not run here, or has no
    /// protection.
    pub(crate) fn set_policy(&self, pace: Option<Pace>, mode: Option<Mode>) -> bool {
        let hands = self.hands();
        let Some(protection) = hands.as_ref().and_then(|hands| hands.protection.as_ref()) else {
            return false;
        };
        pace.into_iter().for_each(&protection.set_pace);
        mode.into_iter().for_each(&protection.set_mode);
        true
    }

    fn hands(&self) -> MutexGuard<'_, Option<Hands>> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size_of(spec: &VmSpec) -> (u64, u8) {
    (spec.ram_bytes, spec.vcpus)
}
