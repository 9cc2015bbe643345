//! Everything behind the link's lock.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

use quinn::Connection;
use rhizomorph_proto::dedup::DedupWindow;
use rhizomorph_proto::ids::{BundleId, PathId};
use rhizomorph_proto::liveness::Liveness;
use rhizomorph_proto::outbox::Outbox;
use rhizomorph_proto::reassembly::Reassembly;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::close::{CloseReason, DownReason};
use crate::events::EventQueue;
use crate::payload::Payload;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(super) outbox: Outbox,
    pub(super) outgoing: HashMap<BundleId, Outgoing>,
    pub(super) inbox: Reassembly,
    pub(super) dedup: DedupWindow,
    pub(super) next_seq: u64,
    pub(super) events: EventQueue,
    pub(super) paths: BTreeMap<PathId, PathSlot>,
    pub(super) closed: Option<CloseReason>,
}

/// A bundle until its acknowledgement.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) payload: Payload,
    /// Its share of the window, given back when dropped.
    pub(super) _window: OwnedSemaphorePermit,
    pub(super) receipt: oneshot::Sender<()>,
}

/// A path, connected or not.
#[derive(Debug, Default)]
pub(super) struct PathSlot {
    pub(super) local: Option<SocketAddr>,
    pub(super) remote: Option<SocketAddr>,
    /// Highest dial seen.
    pub(super) attempt: u32,
    pub(super) current: Option<Current>,
    /// Of connections that ended.
    pub(super) past: Traffic,
    pub(super) last_heard: Option<Instant>,
    pub(super) down: Option<DownReason>,
}

/// The connection a path has now.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) connection: Connection,
    pub(super) liveness: Liveness,
    /// QUIC's count of received packets when last looked at.
    pub(super) packets_seen: u64,
    /// Stripes being sent on it; dropping an entry recalls the stripe.
    pub(super) stripes: HashMap<(BundleId, usize), oneshot::Sender<()>>,
}

/// Bytes and packets of a path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) packets_lost: u64,
}

impl Traffic {
    pub(super) fn of(connection: &Connection) -> Self {
        let stats = connection.stats();
        Self {
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            packets_lost: stats.path.lost_packets,
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            bytes_sent: self.bytes_sent + other.bytes_sent,
            bytes_received: self.bytes_received + other.bytes_received,
            packets_lost: self.packets_lost + other.packets_lost,
        }
    }
}

impl PathSlot {
    pub(super) fn is_live(&self) -> bool {
        self.current.as_ref().is_some_and(|current| !current.liveness.is_suspect())
    }

    /// Forgets the connection, keeping its counts; returns it.
    pub(super) fn disconnect(&mut self) -> Option<Current> {
        let current = self.current.take()?;
        self.past = self.past.plus(Traffic::of(&current.connection));
        Some(current)
    }
}

impl State {
    /// Takes out everything that must be closed or dropped when the link ends.
    pub(super) fn dismantle(&mut self) -> (Vec<Connection>, HashMap<BundleId, Outgoing>) {
        let current = self.paths.values_mut().filter_map(PathSlot::disconnect);
        let connections = current.map(|current| current.connection).collect();
        (connections, std::mem::take(&mut self.outgoing))
    }
}
