//! The link as the replication driver sees it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mycelium_ram::ports::{SendFailed, Wire};
use rhizomorph_link::{LinkEvent, LinkReceiver, LinkSender, Payload, Priority};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Bundles that wait for the link, per class; the link has its own window in bytes.
const QUEUE: usize = 4;

/// Sends from the driver's threads into the link's runtime.
#[derive(Debug)]
pub(crate) struct LinkWire {
    sender: LinkSender,
    urgent: mpsc::Sender<Bytes>,
    bulk: mpsc::Sender<Bytes>,
    runtime: Handle,
}

impl LinkWire {
    /// Must be called inside the link's runtime.
    pub(crate) fn start(sender: LinkSender) -> Arc<Self> {
        let urgent = pump(sender.clone(), Priority::Control);
        let bulk = pump(sender.clone(), Priority::Bulk);
        Arc::new(Self { sender, urgent, bulk, runtime: Handle::current() })
    }
}

fn pump(sender: LinkSender, priority: Priority) -> mpsc::Sender<Bytes> {
    let (queue, mut frames) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if sender.send_bundle(priority, frame).await.is_err() {
                return;
            }
        }
    });
    queue
}

impl Wire for LinkWire {
    fn datagram(&self, frame: Bytes) {
        // Datagrams may be lost; the next heartbeat says the same and more.
        let _ = self.sender.send_datagram(frame);
    }

    fn bundle(&self, urgent: bool, frame: Bytes, patience: Duration) -> Result<(), SendFailed> {
        let queue = if urgent { &self.urgent } else { &self.bulk };
        let frame = match queue.try_send(frame) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(SendFailed::Closed),
            Err(mpsc::error::TrySendError::Full(frame)) => frame,
        };
        if patience.is_zero() {
            return Err(SendFailed::Full(frame));
        }
        match self.runtime.block_on(async { timeout(patience, queue.reserve()).await }) {
            Ok(Ok(permit)) => {
                permit.send(frame);
                Ok(())
            }
            Ok(Err(_)) => Err(SendFailed::Closed),
            Err(_) => Err(SendFailed::Full(frame)),
        }
    }

    fn close(&self) {
        self.sender.close();
    }
}

/// Bytes that count against a budget for as long as any part of them is kept.
struct Budgeted {
    bytes: Bytes,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Budgeted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes of bundles that may be outstanding: beyond it the link is not to be read, which holds the sender back.
#[derive(Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        // Counted in KiB, because a semaphore counts to 2^32 at most in one go.
        Self(Arc::new(Semaphore::new(bytes.div_ceil(1024))))
    }

    /// Waits for room; the bytes count for as long as any part of them is kept. `None` cannot happen while `self` lives.
    pub(crate) async fn take(&self, payload: Payload) -> Option<Bytes> {
        let kib = u32::try_from(payload.len().div_ceil(1024)).unwrap_or(u32::MAX);
        let permit = self.0.clone().acquire_many_owned(kib).await.ok()?;
        Some(Bytes::from_owner(Budgeted { bytes: payload.into_bytes(), _permit: permit }))
    }
}

/// Hands everything that arrives to `deliver` until the link is closed. At most `budget_bytes` of bundles are
/// outstanding: beyond that the link is not read, which holds the sender back.
pub(crate) async fn receive(mut receiver: LinkReceiver, budget_bytes: usize, mut deliver: impl FnMut(Bytes)) {
    let budget = Budget::new(budget_bytes);
    while let Some(event) = receiver.recv().await {
        match event {
            LinkEvent::Datagram(frame) => deliver(frame),
            LinkEvent::Bundle { payload, .. } => {
                let Some(frame) = budget.take(payload).await else { return };
                deliver(frame);
            }
            LinkEvent::PathUp(path) => tracing::info!(%path, "path up"),
            LinkEvent::PathDown(path, reason) => tracing::warn!(%path, %reason, "path down"),
            LinkEvent::Closed => return,
        }
    }
}
