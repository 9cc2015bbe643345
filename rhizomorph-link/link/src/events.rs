//! What a link tells its application, and the bounded queues it waits in.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use rhizomorph_proto::ids::{BundleId, PathId, Priority};

use crate::close::DownReason;
use crate::limits::{DATAGRAMS_QUEUED, PATH_EVENTS_QUEUED};
use crate::payload::Payload;

/// Something that came over the link.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// A datagram; each at most once, in any order.
    Datagram(Bytes),
    /// A whole bundle; each exactly once, in the order they became whole. Receiving it acknowledges it.
    Bundle {
        /// The sender's number for it, consecutive from 0.
        id: BundleId,
        /// Its class.
        priority: Priority,
        /// Its bytes.
        payload: Payload,
    },
    /// A path carries again, or for the first time.
    PathUp(PathId),
    /// A path carries nothing for now. The link goes on over the others, or waits.
    PathDown(PathId, DownReason),
    /// The link is closed; nothing follows.
    Closed,
}

/// An event with the moment it reached this process.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Stamped by the task that reads the connection, for a datagram as soon as QUIC hands it over: queueing
    /// behind other events is not in it. For a bundle, when its last stripe was complete.
    pub at: Instant,
    /// The event.
    pub event: LinkEvent,
}

/// Events waiting for the application, most urgent kind first.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    datagrams: VecDeque<Arrived>,
    paths: VecDeque<Arrived>,
    /// By [`Priority::index`]. Bounded by the reassembly, which counts bundles until they are taken.
    bundles: [VecDeque<Arrived>; 2],
    closed: Option<Instant>,
}

impl EventQueue {
    pub(crate) fn push(&mut self, at: Instant, event: LinkEvent) {
        let (queue, max) = match &event {
            LinkEvent::Datagram(_) => (&mut self.datagrams, DATAGRAMS_QUEUED),
            LinkEvent::PathUp(_) | LinkEvent::PathDown(..) => (&mut self.paths, PATH_EVENTS_QUEUED),
            LinkEvent::Bundle { priority, .. } => (&mut self.bundles[priority.index()], usize::MAX),
            LinkEvent::Closed => {
                self.closed = Some(at);
                return;
            }
        };
        // The oldest make room: of heartbeats and path states the newest count.
        if queue.len() == max {
            queue.pop_front();
        }
        queue.push_back(Arrived { at, event });
    }

    pub(crate) fn pop(&mut self) -> Option<Arrived> {
        let [control, bulk] = &mut self.bundles;
        let queues = [&mut self.datagrams, &mut self.paths, control, bulk];
        let first = queues.into_iter().find_map(VecDeque::pop_front);
        first.or_else(|| self.closed.take().map(|at| Arrived { at, event: LinkEvent::Closed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(id: u64, priority: Priority) -> LinkEvent {
        LinkEvent::Bundle { id: BundleId(id), priority, payload: Payload::default() }
    }

    #[test]
    fn datagrams_overtake_control_overtakes_bulk_and_closed_is_last() {
        let mut queue = EventQueue::default();
        let now = Instant::now();
        queue.push(now, LinkEvent::Closed);
        queue.push(now, bundle(0, Priority::Bulk));
        queue.push(now, bundle(1, Priority::Control));
        queue.push(now, LinkEvent::Datagram(Bytes::new()));
        let order: Vec<String> = std::iter::from_fn(|| queue.pop())
            .map(|arrived| match arrived.event {
                LinkEvent::Bundle { id, .. } => id.to_string(),
                LinkEvent::Datagram(_) => "datagram".into(),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(order, ["datagram", "bundle 1", "bundle 0", "Closed"]);
    }

    #[test]
    fn a_flood_of_datagrams_keeps_the_newest() {
        let mut queue = EventQueue::default();
        for number in 0..=DATAGRAMS_QUEUED {
            queue.push(Instant::now(), LinkEvent::Datagram(Bytes::from(number.to_be_bytes().to_vec())));
        }
        let first = queue.pop().unwrap().event;
        assert!(matches!(first, LinkEvent::Datagram(bytes) if bytes[..] == 1usize.to_be_bytes()));
    }
}
