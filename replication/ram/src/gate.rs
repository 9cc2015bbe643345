//! The output gate: the one door through which anything the guest says leaves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use mycelium_ram_core::message::{Output, Port};
use mycelium_ram_core::output::{GateMode, Offered, OutputQueue};
use mycelium_ram_core::{EpochId, Time};

use crate::clock;
use crate::events::Spread;
use crate::ports::OutputPort;

/// Answer to an output offered to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The gate has it.
    Taken,
    /// No room: keep it and offer it again when [`OutputPort::room`] is called.
    Full,
}

/// Something done outside on the guest's behalf that no replica needs to repeat: it ends with this process.
pub type Deed = Box<dyn FnOnce() + Send>;

enum Word {
    Output(Output),
    Deed(Deed),
}

struct Held {
    word: Word,
    at: Time,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("at", &self.at).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Inner {
    queue: OutputQueue<Held>,
    refused: bool,
    delay_us: Histogram<u64>,
    first_emitted: Option<Time>,
}

/// The gate. Device threads offer, the epoch thread seals, the protocol thread releases.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    port: Arc<dyn OutputPort>,
}

impl Gate {
    /// An open gate for a guest that runs in epoch `open`.
    ///
    /// # Panics
    /// Never: the histogram's bounds are constants that fit.
    #[must_use]
    pub fn new(port: Arc<dyn OutputPort>, open: EpochId) -> Self {
        let inner = Inner {
            queue: OutputQueue::new(GateMode::Open, open),
            refused: false,
            delay_us: Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds"),
            first_emitted: None,
        };
        Self { inner: Mutex::new(inner), port }
    }

    /// Offers an output. The second value says that it is the first one to wait in the open epoch.
    pub fn offer(&self, port: Port, offset: u64, data: &[u8]) -> (Offer, bool) {
        self.offer_word(Word::Output(Output { port, offset, data: Bytes::copy_from_slice(data) }), data.len())
    }

    /// Offers a deed that counts for `bytes`; it is done where outputs are emitted, in one order with them, and must not
    /// block. Refused or discarded, it is dropped undone. The second value is that of [`Gate::offer`].
    pub fn offer_deed(&self, bytes: usize, deed: Deed) -> (Offer, bool) {
        self.offer_word(Word::Deed(deed), bytes)
    }

    fn offer_word(&self, word: Word, bytes: usize) -> (Offer, bool) {
        let mut inner = self.lock();
        let was_waiting = inner.queue.open_epoch_has_output();
        let at = clock::now();
        match inner.queue.offer(Held { word, at }, bytes) {
            Offered::Pass(held) => {
                inner.emit(&*self.port, held, at);
                (Offer::Taken, false)
            }
            Offered::Held => (Offer::Taken, !was_waiting),
            Offered::Full(_) => {
                inner.refused = true;
                (Offer::Full, false)
            }
        }
    }

    /// Starts anew, open, for a guest that goes on in epoch `open` (a takeover).
    pub fn begin(&self, open: EpochId) {
        self.lock().queue = OutputQueue::new(GateMode::Open, open);
    }

    /// Ends the open epoch. Paused guest only.
    pub fn seal(&self) -> EpochId {
        self.lock().queue.seal()
    }

    /// Outputs made after `base` and up to `epoch` that still wait: what a replica may have to repeat.
    #[must_use]
    pub fn between(&self, base: EpochId, epoch: EpochId) -> Vec<Output> {
        let output = |held: &Held| match &held.word {
            Word::Output(output) => Some(output.clone()),
            Word::Deed(_) => None,
        };
        self.lock().queue.between(base, epoch).filter_map(output).collect()
    }

    /// Lets out what waits of the epochs up to `through`.
    pub fn release(&self, through: EpochId) {
        let mut inner = self.lock();
        let now = clock::now();
        for held in inner.queue.release(through) {
            inner.emit(&*self.port, held, now);
        }
        let room = std::mem::take(&mut inner.refused);
        drop(inner);
        if room {
            self.port.room();
        }
    }

    /// Switches the gate for output made from now on.
    pub fn set_mode(&self, mode: GateMode) {
        self.lock().queue.set_mode(mode);
    }

    /// Drops everything that waits and lets nothing out any more.
    pub fn shut(&self) {
        let mut inner = self.lock();
        inner.queue.set_mode(GateMode::Hold);
        inner.queue.discard();
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().queue.bytes()
    }

    /// Delay of released outputs, in microseconds, since the start.
    #[must_use]
    pub fn delay_us(&self) -> Spread {
        Spread::of(&self.lock().delay_us)
    }

    /// When the first output left.
    #[must_use]
    pub fn first_emitted(&self) -> Option<Time> {
        self.lock().first_emitted
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere while the lock was held cannot have left the queue torn: its methods do not panic midway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn emit(&mut self, port: &dyn OutputPort, held: Held, now: Time) {
        match held.word {
            Word::Output(output) => port.emit(&output),
            Word::Deed(deed) => deed(),
        }
        self.first_emitted.get_or_insert(now);
        self.delay_us.saturating_record(micros(now.since(held.at)).max(1));
    }
}

/// Whole microseconds.
#[must_use]
pub fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug, Default)]
    struct World {
        said: Mutex<Vec<u8>>,
        rooms: AtomicUsize,
    }

    impl OutputPort for World {
        fn emit(&self, output: &Output) {
            self.said.lock().unwrap().push(output.data[0]);
        }
        fn room(&self) {
            self.rooms.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn holds_releases_and_tells_of_room() {
        let world = Arc::new(World::default());
        let gate = Gate::new(world.clone(), EpochId(1));
        assert_eq!(gate.offer(Port::Net(0), 0, b"a"), (Offer::Taken, false));
        gate.set_mode(GateMode::Hold);
        assert_eq!(gate.offer(Port::Net(0), 0, b"b"), (Offer::Taken, true));
        assert_eq!(gate.offer(Port::Net(0), 0, b"c"), (Offer::Taken, false));
        let big = vec![b'x'; mycelium_ram_core::limits::GATE_BYTES];
        assert_eq!(gate.offer(Port::Serial, 0, &big).0, Offer::Full);
        assert_eq!(*world.said.lock().unwrap(), b"a");
        assert_eq!(gate.seal(), EpochId(1));
        assert_eq!(gate.between(EpochId(0), EpochId(1)).len(), 2);
        gate.release(EpochId(1));
        assert_eq!(*world.said.lock().unwrap(), b"abc");
        assert_eq!(world.rooms.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn deeds_keep_their_place_among_outputs_and_stay_here() {
        let world = Arc::new(World::default());
        let gate = Gate::new(world.clone(), EpochId(1));
        gate.set_mode(GateMode::Hold);
        let deed = |byte: u8| -> Deed {
            let world = world.clone();
            Box::new(move || world.said.lock().unwrap().push(byte))
        };
        gate.offer(Port::Net(0), 0, b"a");
        assert_eq!(gate.offer_deed(1, deed(b'b')), (Offer::Taken, false));
        gate.offer(Port::Net(0), 0, b"c");
        gate.seal();
        assert_eq!(gate.offer_deed(1, deed(b'd')), (Offer::Taken, true));
        assert_eq!(gate.offer_deed(mycelium_ram_core::limits::GATE_BYTES, deed(b'x')).0, Offer::Full);
        assert_eq!(gate.between(EpochId(0), EpochId(1)).len(), 2, "a replica gets outputs only");
        gate.release(EpochId(1));
        assert_eq!(*world.said.lock().unwrap(), b"abc");
        gate.shut();
        gate.release(EpochId(2));
        assert_eq!(*world.said.lock().unwrap(), b"abc");
    }

    #[test]
    fn a_shut_gate_lets_nothing_out() {
        let world = Arc::new(World::default());
        let gate = Gate::new(world.clone(), EpochId(1));
        gate.set_mode(GateMode::Hold);
        gate.offer(Port::Net(0), 0, b"a");
        gate.seal();
        gate.shut();
        gate.offer(Port::Net(0), 0, b"b");
        gate.release(EpochId(1));
        assert!(world.said.lock().unwrap().is_empty());
    }
}
