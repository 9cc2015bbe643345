//! Bundles through the link: in from the application and out on paths, in from paths and out to the application.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quinn::Connection;
use rhizomorph_proto::codec::{Datagram, StripeHeader};
use rhizomorph_proto::ids::{BundleId, PathId, Priority};
use rhizomorph_proto::outbox::Assignment;
use rhizomorph_proto::reassembly::{Offer, ReassemblyError, Whole};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::state::Outgoing;
use super::{Link, State};
use crate::close::CloseReason;
use crate::error::SendError;
use crate::events::{Arrived, LinkEvent};
use crate::limits::{BUNDLE_COST_MIN, BUNDLE_MAX};
use crate::path::stripes_out;
use crate::payload::Payload;

/// A stripe about to leave on a path.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) path: PathId,
    pub(crate) connection: Connection,
    pub(crate) stripe: StripeHeader,
    pub(crate) parts: Vec<Bytes>,
    /// Resolves when the stripe is recalled.
    pub(crate) recalled: oneshot::Receiver<()>,
}

impl Link {
    /// Waits for room, then queues a bundle; returns its id and what resolves at its acknowledgement.
    pub(crate) async fn send_bundle(
        self: &Arc<Self>,
        priority: Priority,
        payload: Payload,
    ) -> Result<(BundleId, oneshot::Receiver<()>), SendError> {
        let len = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= BUNDLE_MAX);
        let len = len.ok_or(SendError::BundleTooLarge(payload.len()))?;
        let cost = len.max(u32::try_from(BUNDLE_COST_MIN).unwrap_or(u32::MAX));
        let window = Arc::clone(&self.windows[priority.index()]);
        let permit = window.acquire_many_owned(cost).await.map_err(|_| self.closed_error())?;
        let receipt = self.push_when_ids_are_free(priority, len, payload, permit).await?;
        self.dispatch();
        Ok(receipt)
    }

    async fn push_when_ids_are_free(
        &self,
        priority: Priority,
        len: u32,
        payload: Payload,
        permit: OwnedSemaphorePermit,
    ) -> Result<(BundleId, oneshot::Receiver<()>), SendError> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            {
                let mut state = self.state();
                if let Some(reason) = state.closed {
                    return Err(SendError::Closed(reason));
                }
                if state.outbox.may_push() {
                    let id = state.outbox.push(priority, len, self.options.stripe_size())?;
                    let (receipt, acked) = oneshot::channel();
                    state.outgoing.insert(id, Outgoing { payload, _window: permit, receipt });
                    return Ok((id, acked));
                }
            }
            room.await;
        }
    }

    pub(crate) fn closed_error(&self) -> SendError {
        SendError::Closed(self.close_reason().unwrap_or(CloseReason::Local))
    }

    /// Hands every stripe that should leave now to its path.
    pub(crate) fn dispatch(self: &Arc<Self>) {
        let launches = self.state().launches(self.now());
        for launch in launches {
            self.executor.spawn(stripes_out::send(Arc::clone(self), launch));
        }
    }

    /// The transport delivered a stripe.
    pub(crate) fn stripe_delivered(self: &Arc<Self>, path: PathId, stripe: &StripeHeader) {
        let now = self.now();
        {
            let mut state = self.state();
            state.outbox.delivered(path, stripe, now);
            state.forget_stripe(path, stripe);
        }
        self.dispatch();
    }

    /// A stripe could not be sent though its connection may live.
    pub(crate) fn stripe_failed(self: &Arc<Self>, path: PathId, stripe: &StripeHeader) {
        {
            let mut state = self.state();
            if !state.forget_stripe(path, stripe) {
                return;
            }
            state.outbox.failed(path, stripe);
        }
        self.dispatch();
    }

    /// The peer's application has these bundles.
    pub(super) fn bundles_acked(self: &Arc<Self>, ids: &[BundleId]) {
        let settled: Vec<Outgoing> = {
            let mut state = self.state();
            let State { outbox, outgoing, .. } = &mut *state;
            ids.iter().filter(|id| outbox.acked(**id)).filter_map(|id| outgoing.remove(id)).collect()
        };
        for bundle in settled {
            // The application may not care for the receipt.
            let _ = bundle.receipt.send(());
        }
        self.room.notify_waiters();
        self.dispatch();
    }

    /// Looks at an incoming stripe's header. A repetition of a taken bundle is acknowledged again.
    pub(crate) fn offer(&self, stripe: &StripeHeader) -> Result<Offer, ReassemblyError> {
        let offer = self.state().inbox.offer(stripe)?;
        if offer == Offer::Taken {
            self.send_frame(&Datagram::Ack(vec![stripe.bundle()]));
        }
        Ok(offer)
    }

    /// Adds an incoming stripe's bytes.
    pub(crate) fn insert(&self, stripe: &StripeHeader, bytes: Bytes) -> Result<(), ReassemblyError> {
        let at = Instant::now();
        {
            let mut state = self.state();
            let Some(Whole { id, priority, parts }) = state.inbox.insert(stripe, bytes)? else {
                return Ok(());
            };
            state.events.push(at, LinkEvent::Bundle { id, priority, payload: parts.into() });
        }
        self.events.notify_one();
        Ok(())
    }

    /// The next event, if one waits. Taking a bundle acknowledges it.
    pub(crate) fn try_recv(&self) -> Option<Arrived> {
        let (arrived, taken) = {
            let mut state = self.state();
            let arrived = state.events.pop()?;
            let taken = match &arrived.event {
                LinkEvent::Bundle { id, .. } => Some(*id),
                _ => None,
            };
            taken.into_iter().for_each(|id| state.inbox.take(id));
            (arrived, taken)
        };
        if let Some(id) = taken {
            self.send_frame(&Datagram::Ack(vec![id]));
        }
        Some(arrived)
    }

    /// Waits until an event may be there.
    pub(crate) async fn event(&self) {
        self.events.notified().await;
    }
}

impl State {
    fn launches(&mut self, now: std::time::Duration) -> Vec<Launch> {
        let mut launches = Vec::new();
        if self.closed.is_some() {
            // What a task still reports after the close finds neither connections nor bytes.
            return launches;
        }
        while let Some(Assignment { path, stripe }) = self.outbox.next(now) {
            let current = self.paths.get_mut(&path).and_then(|slot| slot.current.as_mut());
            let bundle = self.outgoing.get(&stripe.bundle());
            let (Some(current), Some(bundle)) = (current, bundle) else {
                // Outbox and paths change together under one lock; this would be our defect.
                debug_assert!(false, "a stripe assigned to {path} without connection or bytes");
                self.outbox.failed(path, &stripe);
                break;
            };
            let (recall, recalled) = oneshot::channel();
            current.stripes.insert((stripe.bundle(), stripe.index()), recall);
            let parts = bundle.payload.slice(stripe.offset(), stripe.len());
            launches.push(Launch { path, connection: current.connection.clone(), stripe, parts, recalled });
        }
        launches
    }

    /// True if the stripe was being sent on that path's present connection.
    fn forget_stripe(&mut self, path: PathId, stripe: &StripeHeader) -> bool {
        let current = self.paths.get_mut(&path).and_then(|slot| slot.current.as_mut());
        current.is_some_and(|current| current.stripes.remove(&(stripe.bundle(), stripe.index())).is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_closed_link_sends_nothing_more() {
        let mut state = State::default();
        state.outbox.path_up(PathId::new(0).unwrap(), Duration::from_millis(1));
        state.outbox.push(Priority::Bulk, 100, 16384).unwrap();
        state.closed = Some(CloseReason::Local);
        drop(state.dismantle());
        assert!(state.launches(Duration::ZERO).is_empty());
    }
}
