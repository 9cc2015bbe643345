//! The state one end of a link keeps, and the moves on it. Nothing here waits: tasks wait, then call in.
//!
//! ```text
//!   LinkSender ──┐                                    ┌─> path::stripes_out (one task a stripe)
//!   LinkReceiver ┼──> Link (one lock, short sections) ┼── path::connection  (three tasks a connection)
//!   dialer, listener: install connections ────────────┴── watch             (one task: silence, recall, queries)
//! ```
//!
//! The decisions are `rhizomorph-proto`'s; this file carries connections to them and their answers to connections.

mod bundles;
mod datagrams;
mod paths;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rhizomorph_proto::ids::{LinkId, Priority};
use tokio::sync::{Notify, Semaphore, watch};

use crate::close::{CloseCode, CloseReason};
use crate::events::LinkEvent;
use crate::limits::{BULK_WINDOW, CONTROL_WINDOW};
use crate::options::LinkOptions;
use crate::peer_key::PeerKey;
use crate::pool::BufferPool;
use crate::runtime::Executor;

pub(crate) use bundles::Launch;
pub(crate) use paths::Refusal;
pub(crate) use state::State;

/// One end of one link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) peer: PeerKey,
    pub(crate) options: LinkOptions,
    pub(crate) executor: Executor,
    pub(crate) pool: BufferPool,
    started: Instant,
    state: Mutex<State>,
    /// By [`Priority::index`]: bytes that may still be sent before acknowledgements.
    windows: [Arc<Semaphore>; 2],
    /// An event waits for the application.
    events: Notify,
    /// A bundle was acknowledged: ids are free.
    room: Notify,
    /// A path was lost or is stale: its dialer should look.
    pub(crate) redial: Notify,
    closed: watch::Sender<bool>,
}

impl Link {
    /// A link without connections; its watch task runs until it is closed.
    pub(crate) fn start(id: LinkId, peer: PeerKey, options: LinkOptions, executor: Executor) -> Arc<Self> {
        let window = |bytes| Arc::new(Semaphore::new(bytes));
        let link = Arc::new(Self {
            id,
            peer,
            options,
            executor,
            pool: BufferPool::default(),
            started: Instant::now(),
            state: Mutex::default(),
            windows: Priority::ALL.map(|priority| window(window_bytes(priority))),
            events: Notify::new(),
            room: Notify::new(),
            redial: Notify::new(),
            closed: watch::Sender::new(false),
        });
        link.executor.spawn(crate::watch::run(Arc::clone(&link)));
        link
    }

    /// Time as the pure parts want it.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic inside a section leaves the state usable: each section finishes its bookkeeping before it calls
        // anything that could panic on bad input, which the codecs exclude.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the link: connections are closed, receipts fail, the application is told.
    pub(crate) fn close(&self, reason: CloseReason) {
        let (connections, _outgoing) = {
            let mut state = self.state();
            if state.closed.is_some() {
                return;
            }
            state.closed = Some(reason);
            state.events.push(Instant::now(), LinkEvent::Closed);
            state.dismantle()
        };
        for connection in connections {
            CloseCode::LinkClosed.close(&connection, "link closed");
        }
        self.windows.iter().for_each(|window| window.close());
        self.closed.send_replace(true);
        self.events.notify_one();
        self.room.notify_waiters();
        self.redial.notify_waiters();
        tracing::debug!(link = %self.id, %reason, "link closed");
    }

    /// Why the link is closed, if it is.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.state().closed
    }

    /// Waits until the link is closed.
    pub(crate) async fn wait_closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives as long as self.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

fn window_bytes(priority: Priority) -> usize {
    match priority {
        Priority::Control => CONTROL_WINDOW,
        Priority::Bulk => BULK_WINDOW,
    }
}
