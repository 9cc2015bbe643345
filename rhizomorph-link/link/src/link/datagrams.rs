//! Datagrams through the link: the application's, and those that settle bundles. All go out twice.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quinn::Connection;
use rhizomorph_proto::codec::{Datagram, encode_app};
use rhizomorph_proto::ids::BundleId;
use rhizomorph_proto::limits::ACK_IDS_MAX;
use rhizomorph_proto::reassembly::Standing;

use super::{Link, State};
use crate::error::SendError;
use crate::events::LinkEvent;
use crate::limits::{DATAGRAM_COPIES, DATAGRAM_MAX};

impl Link {
    /// Sends an application datagram on the best paths.
    pub(crate) fn send_datagram(&self, payload: &[u8]) -> Result<(), SendError> {
        if payload.len() > DATAGRAM_MAX {
            return Err(SendError::DatagramTooLarge(payload.len()));
        }
        let (seq, connections) = {
            let mut state = self.state();
            if let Some(reason) = state.closed {
                return Err(SendError::Closed(reason));
            }
            let seq = state.next_seq;
            state.next_seq += 1;
            (seq, state.best_connections())
        };
        let frame = encode_app(seq, payload)?;
        if send_on(&connections, &frame) { Ok(()) } else { Err(SendError::NoPath) }
    }

    /// Sends one of our own frames on the best paths; lost ones are made up for by queries.
    pub(super) fn send_frame(&self, datagram: &Datagram) {
        let connections = self.state().best_connections();
        match datagram.encode() {
            Ok(frame) => {
                send_on(&connections, &frame);
            }
            Err(error) => tracing::error!(%error, "own frame not encodable"),
        }
    }

    /// Takes in a frame read at `at`.
    pub(crate) fn datagram(self: &Arc<Self>, at: Instant, datagram: Datagram) {
        match datagram {
            Datagram::App { seq, payload } => self.app_datagram(at, seq, payload),
            Datagram::Ack(ids) => self.bundles_acked(&ids),
            Datagram::Query(ids) => self.answer(&ids),
            Datagram::Status { bundle, have } => {
                let now = self.now();
                self.state().outbox.status(bundle, &have, now);
                self.dispatch();
            }
        }
    }

    fn app_datagram(&self, at: Instant, seq: u64, payload: Bytes) {
        {
            let mut state = self.state();
            if !state.dedup.first(seq) {
                return;
            }
            state.events.push(at, LinkEvent::Datagram(payload));
        }
        self.events.notify_one();
    }

    fn answer(&self, ids: &[BundleId]) {
        let standings: Vec<(BundleId, Standing)> = {
            let state = self.state();
            ids.iter().map(|id| (*id, state.inbox.standing(*id))).collect()
        };
        let mut taken = Vec::new();
        for (bundle, standing) in standings {
            match standing {
                Standing::Taken => taken.push(bundle),
                Standing::Waiting(have) => self.send_frame(&Datagram::Status { bundle, have }),
            }
        }
        if !taken.is_empty() {
            self.send_frame(&Datagram::Ack(taken));
        }
    }

    /// Asks about bundles whose acknowledgement is overdue.
    pub(crate) fn ask_overdue(&self) {
        let now = self.now();
        let overdue = self.state().outbox.overdue(now, ACK_IDS_MAX);
        if !overdue.is_empty() {
            self.send_frame(&Datagram::Query(overdue));
        }
    }
}

/// True if at least one copy was handed over.
fn send_on(connections: &[Connection], frame: &Bytes) -> bool {
    let sent = connections.iter().map(|connection| connection.send_datagram(frame.clone()));
    sent.filter(Result::is_ok).count() > 0
}

impl State {
    /// The connections a datagram should take: live ones before silent ones, then by round-trip time.
    fn best_connections(&self) -> Vec<Connection> {
        let mut ranked: Vec<_> = self
            .paths
            .iter()
            .filter_map(|(path, slot)| {
                let current = slot.current.as_ref()?;
                let rtt = self.outbox.path(*path)?.rtt();
                Some((current.liveness.is_suspect(), rtt, &current.connection))
            })
            .collect();
        ranked.sort_by_key(|(suspect, rtt, _)| (*suspect, *rtt));
        ranked.into_iter().take(DATAGRAM_COPIES).map(|(_, _, connection)| connection.clone()).collect()
    }
}
