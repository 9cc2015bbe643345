//! Forwarding what enters the guest to its replicas, so that they can give it to the guest again at takeover.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mycelium_ram_core::message::{Ingress, Message};
use mycelium_ram_core::{IngressSeq, Time, limits};

use crate::clock;
use crate::ports::Wire;

/// From one batch to the next at least: a busy guest's frames travel together instead of each in a bundle of its own, and
/// a lone request, which a takeover must not lose, still goes at once.
const SPACING: Duration = Duration::from_micros(300);

#[derive(Debug, Default)]
struct Inner {
    /// Number of the newest frame given to the guest.
    delivered: IngressSeq,
    /// Frames not yet handed to the wires; the last one is number `delivered`.
    waiting: Vec<(u8, Bytes)>,
    waiting_bytes: usize,
    wires: Vec<Arc<dyn Wire>>,
    stop: bool,
}

/// Counts and forwards. Device threads deliver, a thread of its own sends.
#[derive(Debug, Default)]
pub struct IngressTap {
    inner: Mutex<Inner>,
    wake: Condvar,
}

impl IngressTap {
    /// Starts the forwarding thread; the first frame will be number 1.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> std::io::Result<Arc<Self>> {
        let tap = Arc::new(Self::default());
        let worker = tap.clone();
        std::thread::Builder::new().name("ingress".into()).spawn(move || worker.forward_loop())?;
        Ok(tap)
    }

    /// A frame is about to be given to the guest. Called under the device's lock, so that numbers follow the guest's
    /// order.
    pub fn deliver(&self, nic: u8, frame: &[u8]) {
        let mut inner = self.lock();
        inner.delivered = inner.delivered.next();
        if inner.wires.is_empty() {
            return;
        }
        if inner.waiting_bytes + frame.len() > limits::INGRESS_BYTES {
            // The link is behind: replicas would drop the oldest anyway.
            inner.waiting.clear();
            inner.waiting_bytes = 0;
        }
        inner.waiting.push((nic, Bytes::copy_from_slice(frame)));
        inner.waiting_bytes += frame.len();
        drop(inner);
        self.wake.notify_one();
    }

    /// Numbering goes on after `delivered` (a takeover).
    pub fn resume_after(&self, delivered: IngressSeq) {
        self.lock().delivered = delivered;
    }

    /// Number of the newest frame the guest has been given; stable while the guest is paused.
    #[must_use]
    pub fn delivered(&self) -> IngressSeq {
        self.lock().delivered
    }

    /// Forwards to these replicas from now on.
    pub fn set_wires(&self, wires: Vec<Arc<dyn Wire>>) {
        let mut inner = self.lock();
        inner.waiting.clear();
        inner.waiting_bytes = 0;
        inner.wires = wires;
    }

    /// Ends the forwarding thread.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    fn forward_loop(&self) {
        crate::priority::work();
        let mut sent_at = Time(0);
        loop {
            let mut inner = self.lock();
            while inner.waiting.is_empty() && !inner.stop {
                inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            let early = SPACING.saturating_sub(clock::now().since(sent_at));
            if !early.is_zero() && !inner.stop {
                drop(inner);
                std::thread::sleep(early);
                inner = self.lock();
            }
            if inner.stop {
                return;
            }
            let frames = std::mem::take(&mut inner.waiting);
            inner.waiting_bytes = 0;
            let (last, wires) = (inner.delivered, inner.wires.clone());
            drop(inner);
            send(frames, last, &wires);
            sent_at = clock::now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Best effort: a wire without room loses the batch, and the clients retransmit.
fn send(frames: Vec<(u8, Bytes)>, last: IngressSeq, wires: &[Arc<dyn Wire>]) {
    let mut first = IngressSeq(last.0 + 1 - frames.len() as u64);
    for batch in frames.chunks(limits::INGRESS_BATCH) {
        let frame = Message::Ingress(Ingress { first, frames: batch.to_vec() }).encode();
        for wire in wires {
            let _ = wire.bundle(true, frame.clone(), Duration::ZERO);
        }
        first = IngressSeq(first.0 + batch.len() as u64);
    }
}
