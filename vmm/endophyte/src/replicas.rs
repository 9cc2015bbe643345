//! The replicas an active keeps, as the operator wants them: dialled, joined, given up.
//!
//! ```text
//!            set(+ticket)        accepted          in the record
//!   (none) ──────────────> dialing <─────> joined ─────────────> in sync
//!                            │  ^ link lost, refused │ set(-ticket): dismissed; its link ends once the record has let it go
//!                            v set(-ticket)          v
//!                          (none)                  (none)
//! ```
//! Joining and dismissing happen under one lock, so that no replica joins after it was dismissed.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mycelium_ram::active::Inbox;
use mycelium_ram_core::{Member, limits};
use rhizomorph_link::Ticket;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::rundir::Status;
use crate::session::Offering;

/// The tickets do not make a set of replicas.
#[derive(Debug, thiserror::Error)]
#[error("{0} replicas are asked for, a VM can have {max}; name fewer", max = limits::PEERS)]
pub(crate) struct TooMany(usize);

/// How it stands with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody is told yet: this process is not the active.
    Remembered,
    Dialing,
    Refused,
    Joined(Member),
}

/// One replica, for whoever asks.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) ticket: Ticket,
    pub(crate) standing: Standing,
    pub(crate) trouble: String,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    view: View,
    /// Every incarnation met that the core may still know, newest last.
    met: Vec<Member>,
    /// Its task ends with this.
    _wanted: watch::Sender<()>,
    /// For the task, until it is started.
    still_wanted: watch::Receiver<()>,
}

/// What the tasks need, once this process is the active.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    pub(crate) offering: Offering,
    pub(crate) inbox: Sender<Inbox>,
    pub(crate) runtime: Handle,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    keeper: Option<Keeper>,
    next_id: u64,
}

/// The set, shared.
#[derive(Clone, Debug)]
pub(crate) struct Replicas {
    inner: Arc<Mutex<Inner>>,
    /// Touched on every change, so that watchers look again.
    board: watch::Sender<Status>,
}

impl Replicas {
    pub(crate) fn new(board: watch::Sender<Status>) -> Self {
        Self { inner: Arc::default(), board }
    }

    /// Makes these the replicas, all of them.
    pub(crate) fn set(&self, tickets: &[Ticket]) -> Result<(), TooMany> {
        let mut wanted: Vec<&Ticket> = Vec::new();
        for ticket in tickets {
            if !wanted.contains(&ticket) {
                wanted.push(ticket);
            }
        }
        if wanted.len() > limits::PEERS {
            return Err(TooMany(wanted.len()));
        }
        let mut inner = self.lock();
        inner.give_up(|ticket| !wanted.contains(&ticket));
        for ticket in wanted {
            if !inner.entries.iter().any(|e| e.view.ticket == *ticket) {
                inner.add(self, ticket);
            }
        }
        drop(inner);
        self.touch();
        Ok(())
    }

    /// This process is the active now: begin to keep them.
    pub(crate) fn keep(&self, keeper: Keeper) {
        let mut inner = self.lock();
        let keeper = inner.keeper.insert(keeper).clone();
        for entry in &mut inner.entries {
            entry.start(self, &keeper);
        }
    }

    pub(crate) fn views(&self) -> Vec<View> {
        self.lock().entries.iter().map(|e| e.view.clone()).collect()
    }

    /// Hands a replica that accepted to the driver. `false`: it is not wanted any more.
    pub(crate) fn join(&self, id: u64, member: Member, joined: Inbox) -> bool {
        let mut inner = self.lock();
        let Inner { entries, keeper: Some(keeper), .. } = &mut *inner else { return false };
        let Some(entry) = entries.iter_mut().find(|e| e.id == id) else { return false };
        entry.met.retain(|m| *m != member);
        entry.met.push(member);
        let excess = entry.met.len().saturating_sub(limits::PEERS);
        entry.met.drain(..excess);
        (entry.view.standing, entry.view.trouble) = (Standing::Joined(member), String::new());
        let sent = keeper.inbox.send(joined).is_ok();
        drop(inner);
        self.touch();
        sent
    }

    /// Notes how it stands. `true`: the trouble is a new one.
    pub(crate) fn note(&self, id: u64, standing: Standing, trouble: Option<String>) -> bool {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.iter_mut().find(|e| e.id == id) else { return false };
        let news = trouble.as_ref().is_some_and(|t| *t != entry.view.trouble);
        let changed = news || entry.view.standing != standing;
        entry.view.standing = standing;
        if let Some(trouble) = trouble {
            entry.view.trouble = trouble;
        }
        drop(inner);
        if changed {
            self.touch();
        }
        news
    }

    fn touch(&self) {
        self.board.send_modify(|_| ());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn give_up(&mut self, unwanted: impl Fn(&Ticket) -> bool) {
        for entry in self.entries.extract_if(.., |e| unwanted(&e.view.ticket)) {
            if let Some(keeper) = &self.keeper {
                // The inbox is gone only when the VM has ended.
                entry.met.iter().for_each(|m| drop(keeper.inbox.send(Inbox::Dismiss(*m))));
            }
        }
    }

    fn add(&mut self, set: &Replicas, ticket: &Ticket) {
        self.next_id += 1;
        let (wanted, still_wanted) = watch::channel(());
        let view = View { ticket: ticket.clone(), standing: Standing::Remembered, trouble: String::new() };
        let mut entry = Entry { id: self.next_id, view, met: Vec::new(), _wanted: wanted, still_wanted };
        if let Some(keeper) = &self.keeper {
            entry.start(set, keeper);
        }
        self.entries.push(entry);
    }
}

impl Entry {
    fn start(&mut self, set: &Replicas, keeper: &Keeper) {
        self.view.standing = Standing::Dialing;
        let task = keeper.offering.clone().keep(
            self.id,
            self.view.ticket.clone(),
            set.clone(),
            self.still_wanted.clone(),
            keeper.inbox.clone(),
        );
        keeper.runtime.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(ports: &[u16]) -> Vec<Ticket> {
        ports.iter().map(|p| format!("{}@127.0.0.1:{p}", "ab".repeat(32)).parse().unwrap()).collect()
    }

    #[test]
    fn a_set_is_remembered_without_doubles_and_within_bounds() {
        let (board, mut seen) = watch::channel(Status::default());
        let set = Replicas::new(board);
        set.set(&tickets(&[1, 2, 1])).unwrap();
        assert!(seen.has_changed().unwrap());
        seen.mark_unchanged();
        assert_eq!(set.views().len(), 2);
        assert!(set.views().iter().all(|v| v.standing == Standing::Remembered));
        assert!(set.set(&tickets(&[1, 2, 3, 4, 5])).is_err());
        set.set(&tickets(&[2, 3])).unwrap();
        let left: Vec<u16> = set.views().iter().map(|v| v.ticket.addrs[0].port()).collect();
        assert_eq!(left, [2, 3]);
    }
}
