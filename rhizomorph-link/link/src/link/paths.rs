//! Connections coming, falling silent and going.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError};
use rhizomorph_proto::ids::PathId;
use rhizomorph_proto::liveness::{Change, Liveness};

use super::state::{Current, PathSlot, Traffic};
use super::{Link, State};
use crate::close::{CloseCode, CloseReason, DownReason};
use crate::events::LinkEvent;
use crate::path::connection;
use crate::path_info::{PathInfo, PathState};

/// Why a connection was not taken into a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The link is closed.
    Closed,
    /// A later dial of the same path is in use.
    StaleAttempt,
}

impl Link {
    /// Makes a path known before it is up.
    pub(crate) fn announce(&self, path: PathId, local: Option<SocketAddr>, remote: SocketAddr) {
        let mut state = self.state();
        let slot = state.paths.entry(path).or_default();
        (slot.local, slot.remote) = (local, Some(remote));
    }

    /// Puts a fresh connection, hello done, in a path's place and starts reading it.
    pub(crate) fn install(
        self: &Arc<Self>,
        path: PathId,
        attempt: u32,
        local: Option<SocketAddr>,
        connection: Connection,
    ) -> Result<(), Refusal> {
        let now = self.now();
        let replaced = self.state().install(path, attempt, local, &connection, now)?;
        if let Some(old) = replaced {
            CloseCode::Replaced.close(&old, "a newer connection took over this path");
        }
        tracing::debug!(link = %self.id, %path, attempt, remote = %connection.remote_address(), "path up");
        connection::start(self, path, connection);
        self.events.notify_one();
        self.dispatch();
        Ok(())
    }

    /// A connection ended. Ignored if another has taken its place.
    pub(crate) fn connection_lost(
        self: &Arc<Self>,
        path: PathId,
        connection: &Connection,
        error: &ConnectionError,
    ) {
        match CloseCode::of(error) {
            Some((CloseCode::LinkClosed, _)) => return self.close(CloseReason::Remote),
            Some((CloseCode::UnknownLink, _)) => return self.close(CloseReason::PeerRestarted),
            _ => {}
        }
        let lost = self.state().lose(path, connection, DownReason::Lost(error.to_string()));
        if lost {
            tracing::debug!(link = %self.id, %path, %error, "path lost");
            self.events.notify_one();
            self.redial.notify_waiters();
            self.dispatch();
        }
    }

    /// One look at all paths; `absent` is how long this process was not running before it.
    pub(crate) fn observe(self: &Arc<Self>, absent: Duration) {
        let now = self.now();
        let (changed, stale) = self.state().observe(now, absent);
        if changed {
            self.events.notify_one();
        }
        if stale {
            self.redial.notify_waiters();
        }
        self.dispatch();
    }

    /// Whether a path has no connection, or one so long silent that another should be tried.
    pub(crate) fn wants_dial(&self, path: PathId) -> bool {
        let now = self.now();
        let state = self.state();
        let current = state.paths.get(&path).and_then(|slot| slot.current.as_ref());
        current.is_none_or(|current| current.liveness.is_stale(now, current.connection.rtt()))
    }

    /// Whether a path has a connection at all.
    pub(crate) fn is_connected(&self, path: PathId) -> bool {
        self.state().paths.get(&path).is_some_and(|slot| slot.current.is_some())
    }

    /// What is known of every path.
    pub(crate) fn paths(&self) -> Vec<PathInfo> {
        self.state().paths.iter().map(|(path, slot)| slot.info(*path)).collect()
    }
}

impl State {
    fn install(
        &mut self,
        path: PathId,
        attempt: u32,
        local: Option<SocketAddr>,
        connection: &Connection,
        now: Duration,
    ) -> Result<Option<Connection>, Refusal> {
        if self.closed.is_some() {
            return Err(Refusal::Closed);
        }
        let slot = self.paths.entry(path).or_default();
        if attempt <= slot.attempt {
            return Err(Refusal::StaleAttempt);
        }
        slot.attempt = attempt;
        let was_live = slot.is_live();
        let replaced = slot.disconnect();
        slot.local = local;
        slot.remote = Some(connection.remote_address());
        slot.last_heard = Some(Instant::now());
        slot.down = None;
        slot.current = Some(Current {
            connection: connection.clone(),
            liveness: Liveness::new(now),
            packets_seen: 0,
            stripes: Default::default(),
        });
        self.outbox.path_up(path, connection.rtt());
        if !was_live {
            self.events.push(Instant::now(), LinkEvent::PathUp(path));
        }
        Ok(replaced.map(|old| old.connection))
    }

    fn lose(&mut self, path: PathId, connection: &Connection, reason: DownReason) -> bool {
        let Some(slot) = self.paths.get_mut(&path) else { return false };
        let same = |current: &Current| current.connection.stable_id() == connection.stable_id();
        if !slot.current.as_ref().is_some_and(same) {
            return false;
        }
        let was_live = slot.is_live();
        slot.disconnect();
        slot.down = Some(reason.clone());
        self.outbox.path_down(path);
        if was_live {
            self.events.push(Instant::now(), LinkEvent::PathDown(path, reason));
        }
        true
    }

    /// Returns whether an event came of it, and whether some path wants a fresh dial.
    fn observe(&mut self, now: Duration, absent: Duration) -> (bool, bool) {
        let mut changes = Vec::new();
        let mut stale = false;
        for (path, slot) in &mut self.paths {
            let Some(current) = &mut slot.current else { continue };
            let stats = current.connection.stats();
            let heard = std::mem::replace(&mut current.packets_seen, stats.udp_rx.datagrams)
                != stats.udp_rx.datagrams;
            if heard {
                slot.last_heard = Some(Instant::now());
            }
            self.outbox.path_hint(*path, stats.path.rtt, stats.path.cwnd, now);
            changes.extend(
                current.liveness.observe(now, heard, stats.path.rtt, absent).map(|change| (*path, change)),
            );
            stale |= current.liveness.is_stale(now, stats.path.rtt);
        }
        let changed = !changes.is_empty();
        changes.into_iter().for_each(|(path, change)| self.apply(path, change));
        self.recall();
        (changed, stale)
    }

    fn apply(&mut self, path: PathId, change: Change) {
        let Some(slot) = self.paths.get_mut(&path) else { return };
        let event = match change {
            Change::Suspect(silence) => {
                self.outbox.path_suspect(path);
                let reason = DownReason::Silent(silence);
                slot.down = Some(reason.clone());
                LinkEvent::PathDown(path, reason)
            }
            Change::Live => {
                self.outbox.path_heard(path);
                slot.down = None;
                LinkEvent::PathUp(path)
            }
        };
        self.events.push(Instant::now(), event);
    }

    /// Stops sending on silent paths what others can carry.
    fn recall(&mut self) {
        for assignment in self.outbox.recall() {
            let current = self.paths.get_mut(&assignment.path).and_then(|slot| slot.current.as_mut());
            if let Some(current) = current {
                current.stripes.remove(&(assignment.stripe.bundle(), assignment.stripe.index()));
            }
        }
    }
}

impl PathSlot {
    fn info(&self, id: PathId) -> PathInfo {
        let traffic = self.current.as_ref().map(|current| Traffic::of(&current.connection));
        let traffic = self.past.plus(traffic.unwrap_or_default());
        let state = match &self.current {
            None => PathState::Down,
            Some(_) if self.is_live() => PathState::Live,
            Some(_) => PathState::Silent,
        };
        let rtt = self.current.as_ref().map(|current| current.connection.rtt());
        PathInfo {
            id,
            local: self.local,
            remote: self.remote,
            state,
            down: self.down.clone(),
            rtt_us: rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            bytes_sent: traffic.bytes_sent,
            bytes_received: traffic.bytes_received,
            packets_lost: traffic.packets_lost,
            last_heard: self.last_heard,
            dials: self.attempt,
        }
    }
}
