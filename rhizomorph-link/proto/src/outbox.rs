//! The sending half of a link's bundles: what waits, what is under way on which path, what is settled.
//!
//! ```text
//!                ┌──────── recalled (path silent or gone), or missing at the receiver ────────┐
//!                v                                                                            │
//!   push ──> queued ── next ──> under way on a path ── delivered ──> arrived (all stripes) ── acked ──> gone
//! ```
//!
//! *Delivered* is the transport's word that the bytes reached the other machine; only the receiver's *ack* says that
//! its application has the bundle. Between the two a connection may die with the bytes unread, so a bundle that
//! arrived but is not acked is asked about, and what turns out missing is sent again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::codec::StripeHeader;
use crate::ids::{BundleId, PathId, Priority};
use crate::limits::{BUNDLE_SPAN, QUERY_MAX, QUERY_MIN};
use crate::path_model::PathModel;
use crate::schedule;
use crate::stripe_set::StripeSet;

/// A stripe to be given to a path, or taken back from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The path.
    pub path: PathId,
    /// The stripe.
    pub stripe: StripeHeader,
}

/// All bundles not acknowledged yet, and the paths they may take.
#[derive(Debug, Default)]
pub struct Outbox {
    next_id: u64,
    bundles: BTreeMap<BundleId, Sending>,
    queues: [VecDeque<StripeHeader>; 2],
    paths: BTreeMap<PathId, Route>,
}

#[derive(Debug)]
struct Route {
    model: PathModel,
    suspect: bool,
}

#[derive(Debug)]
struct Sending {
    shape: StripeHeader,
    stripes: Vec<Stripe>,
    missing: usize,
    ask_at: Option<Duration>,
    ask_gap: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stripe {
    /// Paths it is under way on, one bit each.
    under_way: u16,
    queued: bool,
    arrived: bool,
}

impl Outbox {
    /// Whether another bundle may be pushed now: ids may not run too far ahead of the oldest unacknowledged one.
    pub fn may_push(&self) -> bool {
        self.bundles.first_key_value().is_none_or(|(oldest, _)| self.next_id - oldest.0 < BUNDLE_SPAN)
    }

    /// Queues a bundle of `len` bytes, cut every `stripe_size`; returns its id.
    ///
    /// # Errors
    /// [`FrameError::Field`](crate::codec::FrameError::Field) when a size is out of bounds.
    ///
    /// # Panics
    /// When [`Outbox::may_push`] is false: the caller did not wait.
    pub fn push(
        &mut self,
        priority: Priority,
        len: u32,
        stripe_size: u32,
    ) -> Result<BundleId, crate::codec::FrameError> {
        assert!(self.may_push(), "bundle pushed beyond the span");
        let id = BundleId(self.next_id);
        let stripe = |index| StripeHeader::new(id, priority, len, stripe_size, index);
        let shape = stripe(0)?;
        self.next_id += 1;
        let queue = &mut self.queues[priority.index()];
        queue.extend((0..).map_while(|index| stripe(index).ok()).take(shape.count()));
        let queued = Stripe { queued: true, ..Stripe::default() };
        let stripes = vec![queued; shape.count()];
        let missing = shape.count();
        self.bundles.insert(id, Sending { shape, stripes, missing, ask_at: None, ask_gap: QUERY_MIN });
        Ok(id)
    }

    /// A path became usable, or a new connection took its place.
    pub fn path_up(&mut self, path: PathId, rtt: Duration) {
        self.path_down(path);
        self.paths.insert(path, Route { model: PathModel::new(rtt), suspect: false });
    }

    /// A path is gone: what was under way on it waits again.
    pub fn path_down(&mut self, path: PathId) {
        if self.paths.remove(&path).is_some() {
            self.requeue_from(path);
        }
    }

    /// A path fell silent: it gets nothing new.
    pub fn path_suspect(&mut self, path: PathId) {
        if let Some(route) = self.paths.get_mut(&path) {
            route.suspect = true;
        }
    }

    /// A silent path was heard again.
    pub fn path_heard(&mut self, path: PathId) {
        if let Some(route) = self.paths.get_mut(&path) {
            route.suspect = false;
        }
    }

    /// What the transport knows of a path: round-trip time, congestion window in bytes.
    pub fn path_hint(&mut self, path: PathId, rtt: Duration, cwnd: u64, now: Duration) {
        if let Some(route) = self.paths.get_mut(&path) {
            route.model.hint(rtt, cwnd, now);
        }
    }

    /// Takes back everything under way on silent paths, provided another path can carry it; without one it stays
    /// where it is. The caller stops sending what is returned.
    pub fn recall(&mut self) -> Vec<Assignment> {
        if self.live().next().is_none() {
            return Vec::new();
        }
        let silent: Vec<PathId> = self
            .paths
            .iter()
            .filter(|(_, r)| r.suspect && r.model.in_flight() > 0)
            .map(|(path, _)| *path)
            .collect();
        silent.into_iter().flat_map(|path| self.requeue_from(path)).collect()
    }

    /// The next stripe that should leave now, already counted as under way; control before bulk.
    pub fn next(&mut self, now: Duration) -> Option<Assignment> {
        Priority::ALL.into_iter().find_map(|priority| self.next_of(priority, now))
    }

    fn next_of(&mut self, priority: Priority, now: Duration) -> Option<Assignment> {
        loop {
            let lengths = self.queues[priority.index()].iter().map(|stripe| stripe.len() as u64);
            let (position, path) = schedule::pick(self.live(), priority, lengths)?;
            let stripe = self.queues[priority.index()].remove(position)?;
            if self.depart(path, &stripe) {
                self.paths.get_mut(&path)?.model.sent(priority, stripe.len() as u64, now);
                return Some(Assignment { path, stripe });
            }
        }
    }

    /// Marks a stripe taken from the queue as under way; false if it arrived after all while it waited.
    fn depart(&mut self, path: PathId, stripe: &StripeHeader) -> bool {
        let Some(sending) = self.bundles.get_mut(&stripe.bundle()) else { return false };
        let state = &mut sending.stripes[stripe.index()];
        state.queued = false;
        if !state.arrived {
            state.under_way |= path.bit();
        }
        !state.arrived
    }

    fn live(&self) -> impl Iterator<Item = (PathId, &PathModel)> + Clone {
        self.paths.iter().filter(|(_, route)| !route.suspect).map(|(path, route)| (*path, &route.model))
    }

    /// The transport delivered a stripe over `path`.
    pub fn delivered(&mut self, path: PathId, stripe: &StripeHeader, now: Duration) {
        let Some(sending) = self.bundles.get_mut(&stripe.bundle()) else { return };
        let state = &mut sending.stripes[stripe.index()];
        if state.under_way & path.bit() != 0 {
            state.under_way &= !path.bit();
            if let Some(route) = self.paths.get_mut(&path) {
                route.model.delivered(stripe.priority(), stripe.len() as u64, now);
            }
        }
        sending.mark_arrived(stripe.index(), now);
    }

    /// `path` could not deliver a stripe, though its connection lives.
    pub fn failed(&mut self, path: PathId, stripe: &StripeHeader) {
        if self.take_back(path, stripe) {
            self.enqueue_again(*stripe);
        }
    }

    /// The receiver's application has the bundle. False if that was known already.
    pub fn acked(&mut self, id: BundleId) -> bool {
        let Some(sending) = self.bundles.remove(&id) else { return false };
        for (stripe, state) in sending.headers().zip(&sending.stripes) {
            for (path, route) in &mut self.paths {
                if state.under_way & path.bit() != 0 {
                    route.model.taken_back(stripe.priority(), stripe.len() as u64);
                }
            }
        }
        if sending.stripes.iter().any(|state| state.queued) {
            self.queues[sending.shape.priority().index()].retain(|stripe| stripe.bundle() != id);
        }
        true
    }

    /// The receiver's answer to a query: it has these stripes, and the rest is to be sent again. An empty `have`
    /// means it knows nothing of the bundle; one of another length is ignored as nonsense.
    pub fn status(&mut self, id: BundleId, have: &StripeSet, now: Duration) {
        let Some(sending) = self.bundles.get_mut(&id) else { return };
        if !have.is_empty() && have.len() != sending.shape.count() {
            return;
        }
        let mut lost = Vec::new();
        for (index, header) in sending.headers().enumerate() {
            if have.contains(index) {
                sending.mark_arrived(index, now);
            } else if sending.stripes[index].arrived {
                sending.stripes[index].arrived = false;
                sending.missing += 1;
                lost.push(header);
            }
        }
        sending.ask_at = sending.ask_at.filter(|_| sending.missing == 0);
        lost.into_iter().rev().for_each(|stripe| self.enqueue_again(stripe));
    }

    /// Bundles that arrived but were not acknowledged for too long, oldest first, at most `max`: to be asked about.
    pub fn overdue(&mut self, now: Duration, max: usize) -> Vec<BundleId> {
        let overdue =
            self.bundles.iter_mut().filter(|(_, sending)| sending.ask_at.is_some_and(|at| at <= now));
        overdue
            .take(max)
            .map(|(id, sending)| {
                sending.ask_gap = (sending.ask_gap * 2).min(QUERY_MAX);
                sending.ask_at = Some(now + sending.ask_gap);
                *id
            })
            .collect()
    }

    /// What is believed of a path.
    pub fn path(&self, path: PathId) -> Option<&PathModel> {
        self.paths.get(&path).map(|route| &route.model)
    }

    /// Bundles pushed and not acknowledged.
    pub fn unacked(&self) -> usize {
        self.bundles.len()
    }

    fn requeue_from(&mut self, path: PathId) -> Vec<Assignment> {
        let under_way = |sending: &Sending| {
            let on_path = sending.stripes.iter().map(move |state| state.under_way & path.bit() != 0);
            sending.headers().zip(on_path.collect::<Vec<_>>()).filter(|(_, on)| *on).map(|(stripe, _)| stripe)
        };
        let stripes: Vec<StripeHeader> = self.bundles.values().flat_map(under_way).collect();
        // Back to front, so that the queue begins with the oldest.
        stripes.iter().rev().for_each(|stripe| self.failed(path, stripe));
        stripes.into_iter().map(|stripe| Assignment { path, stripe }).collect()
    }

    /// Ends a stripe's stay on a path; true if it is now on no path and still to be delivered.
    fn take_back(&mut self, path: PathId, stripe: &StripeHeader) -> bool {
        let Some(sending) = self.bundles.get_mut(&stripe.bundle()) else { return false };
        let state = &mut sending.stripes[stripe.index()];
        if state.under_way & path.bit() == 0 {
            return false;
        }
        state.under_way &= !path.bit();
        let orphan = state.under_way == 0 && !state.arrived;
        if let Some(route) = self.paths.get_mut(&path) {
            route.model.taken_back(stripe.priority(), stripe.len() as u64);
        }
        orphan
    }

    fn enqueue_again(&mut self, stripe: StripeHeader) {
        let Some(sending) = self.bundles.get_mut(&stripe.bundle()) else { return };
        let state = &mut sending.stripes[stripe.index()];
        if !std::mem::replace(&mut state.queued, true) {
            self.queues[stripe.priority().index()].push_front(stripe);
        }
    }
}

impl Sending {
    fn headers(&self) -> impl Iterator<Item = StripeHeader> + use<> {
        let shape = self.shape;
        (0..shape.count()).filter_map(move |index| shape.sibling(index))
    }

    fn mark_arrived(&mut self, index: usize, now: Duration) {
        if !std::mem::replace(&mut self.stripes[index].arrived, true) {
            self.missing -= 1;
            if self.missing == 0 {
                self.ask_at = Some(now + self.ask_gap);
            }
        }
    }
}

#[cfg(test)]
mod tests;
