//! The output gate: the one door through which anything the guest says leaves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use mycelium_ram_core::message::{Output, Port};
use mycelium_ram_core::output::{GateMode, Offered, OutputQueue};
use mycelium_ram_core::{EpochId, Time};

use crate::clock;
use crate::drill::{self, Phase};
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
    /// Output is leaving, without the lock: what is offered meanwhile must not overtake it.
    emitting: bool,
    refused: bool,
    /// Nothing leaves any more.
    shut: bool,
    /// Until when output may leave that nobody has committed, in a leased gate.
    lease: Time,
    delay_us: Histogram<u64>,
    first_emitted: Option<Time>,
}

/// The gate. Device threads offer, the epoch thread seals, the protocol thread releases, through a thread of its own.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    /// Held by whoever lets output out or switches the gate, so that output keeps its order.
    door: Mutex<()>,
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
            emitting: false,
            refused: false,
            shut: false,
            lease: Time(0),
            delay_us: Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds"),
            first_emitted: None,
        };
        Self { inner: Mutex::new(inner), door: Mutex::new(()), port }
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
        let held = Held { word, at };
        let leased = at <= inner.lease;
        let offered = if inner.emitting {
            inner.queue.hold(held, bytes)
        } else {
            inner.queue.offer(held, bytes, leased)
        };
        match offered {
            Offered::Pass(held) => {
                inner.count(at, at);
                drop(inner);
                self.emit(held);
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
        let mut inner = self.lock();
        inner.queue = OutputQueue::new(GateMode::Open, open);
        inner.lease = Time(0);
        inner.shut = false;
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
        self.release_by(through, Time(u64::MAX));
    }

    /// As [`Gate::release`]; frames that have not left `by` then wait for the next release, which is asked for on younger word. Says
    /// up to which epoch everything has left.
    ///
    /// Devices can offer meanwhile: a frame takes the kernel longer to send than it takes them to make the next one.
    pub fn release_by(&self, through: EpochId, by: Time) -> EpochId {
        let _door = self.enter();
        self.let_out(through, by)
    }

    /// With the door held.
    fn let_out(&self, through: EpochId, by: Time) -> EpochId {
        let mut late = Vec::new();
        let mut inner = self.lock();
        loop {
            // What has been offered to an open gate meanwhile waits only behind what is leaving, and needs no permission.
            let open = inner.queue.mode() == GateMode::Open;
            let (through, by) = if open { (EpochId(u64::MAX), Time(u64::MAX)) } else { (through, by) };
            let leaving = inner.queue.take(through);
            inner.emitting = !leaving.is_empty();
            if leaving.is_empty() {
                break;
            }
            for chunk in chunks(leaving) {
                if inner.shut {
                    break;
                }
                let now = clock::now();
                chunk.iter().for_each(|(_, _, held)| inner.count(held.at, now));
                drop(inner);
                for (epoch, bytes, held) in chunk {
                    // Looked at for each: between two frames a process may be stopped for any time.
                    if !held.is_frame() || late.is_empty() && clock::now() <= by {
                        self.emit(held);
                        drill::reached(Phase::Releasing);
                    } else {
                        late.push((epoch, bytes, held));
                    }
                }
                inner = self.lock();
            }
        }
        let all_left = late.first().map_or(through, |(epoch, _, _)| epoch.prev());
        if !inner.shut {
            inner.queue.put_back(late);
        }
        let room = std::mem::take(&mut inner.refused);
        drop(inner);
        if room {
            self.port.room();
        }
        all_left
    }

    /// Has output leave that nobody has committed, until this time, if the gate is leased; what waits needs a
    /// [`Gate::release_leased`]. Says whether anything does.
    pub fn lease(&self, until: Time) -> bool {
        let mut inner = self.lock();
        inner.lease = until;
        inner.queue.mode() == GateMode::Leased && inner.queue.is_pending()
    }

    /// Lets out what waits, on the lease.
    pub fn release_leased(&self) {
        let _door = self.enter();
        let inner = self.lock();
        let (lease, leased) = (inner.lease, inner.queue.mode() == GateMode::Leased);
        drop(inner);
        if leased && clock::now() <= lease {
            self.let_out(EpochId(u64::MAX), lease);
        }
    }

    /// Switches the gate for output made from now on. Opening it lets out what waits. A leased gate has no lease to begin with.
    pub fn set_mode(&self, mode: GateMode) {
        let _door = self.enter();
        let mut inner = self.lock();
        inner.queue.set_mode(mode);
        inner.lease = Time(0);
        drop(inner);
        if mode == GateMode::Open {
            self.let_out(EpochId(u64::MAX), Time(u64::MAX));
        }
    }

    /// Drops everything that waits and lets nothing out any more.
    pub fn shut(&self) {
        let mut inner = self.lock();
        inner.queue.set_mode(GateMode::Hold);
        inner.queue.discard();
        inner.shut = true;
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

    fn enter(&self) -> MutexGuard<'_, ()> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, held: Held) {
        match held.word {
            Word::Output(output) => self.port.emit(&output),
            Word::Deed(deed) => deed(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere while the lock was held cannot have left the queue torn: its methods do not panic midway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn is_frame(&self) -> bool {
        matches!(&self.word, Word::Output(Output { port: Port::Net(_), .. }))
    }
}

/// Outputs that leave between two looks at whether they still may.
const CHUNK: usize = 16;

fn chunks<T>(leaving: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut leaving = leaving.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = leaving.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

impl Inner {
    /// An output that was offered at `at` leaves.
    fn count(&mut self, at: Time, now: Time) {
        self.first_emitted.get_or_insert(now);
        self.delay_us.saturating_record(micros(now.since(at)).max(1));
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
    fn a_leased_gate_lets_out_while_the_lease_lasts_and_holds_when_it_is_over() {
        let world = Arc::new(World::default());
        let gate = Gate::new(world.clone(), EpochId(1));
        let soon = || clock::now() + Duration::from_secs(60);
        gate.set_mode(GateMode::Leased);
        assert_eq!(
            gate.offer(Port::Net(0), 0, b"a"),
            (Offer::Taken, true),
            "a leased gate begins without a lease"
        );
        gate.release_leased();
        assert!(world.said.lock().unwrap().is_empty());
        assert!(gate.lease(soon()), "something waits");
        gate.release_leased();
        assert_eq!(gate.offer(Port::Net(0), 0, b"b"), (Offer::Taken, false));
        assert_eq!(*world.said.lock().unwrap(), b"ab");
        gate.lease(clock::now() - Duration::from_nanos(1));
        assert_eq!(gate.offer(Port::Net(0), 0, b"c"), (Offer::Taken, true));
        gate.seal();
        gate.release(EpochId(1));
        assert_eq!(*world.said.lock().unwrap(), b"abc", "what is committed needs no lease");
        gate.lease(soon());
        gate.set_mode(GateMode::Hold);
        gate.set_mode(GateMode::Leased);
        assert_eq!(
            gate.offer(Port::Net(0), 0, b"d"),
            (Offer::Taken, true),
            "a lease ends with the gate's mode"
        );
    }

    #[test]
    fn output_offered_between_the_last_release_and_the_opening_leaves() {
        let world = Arc::new(World::default());
        let gate = Gate::new(world.clone(), EpochId(1));
        gate.set_mode(GateMode::Hold);
        gate.offer(Port::Net(0), 0, b"a");
        gate.release(EpochId(1));
        gate.offer(Port::Net(0), 0, b"b");
        gate.set_mode(GateMode::Open);
        gate.offer(Port::Net(0), 0, b"c");
        assert_eq!(*world.said.lock().unwrap(), b"abc");
    }

    #[test]
    fn output_offered_while_output_leaves_does_not_overtake_it() {
        /// Offers an output from within the first one's emission.
        #[derive(Debug, Default)]
        struct Echo {
            gate: Mutex<Option<Arc<Gate>>>,
            said: Mutex<Vec<u8>>,
        }
        impl OutputPort for Echo {
            fn emit(&self, output: &Output) {
                if let Some(gate) = self.gate.lock().unwrap().take() {
                    gate.offer(Port::Net(0), 0, b"c");
                }
                self.said.lock().unwrap().push(output.data[0]);
            }
            fn room(&self) {}
        }
        let world = Arc::new(Echo::default());
        let gate = Arc::new(Gate::new(world.clone(), EpochId(1)));
        gate.set_mode(GateMode::Hold);
        gate.offer(Port::Net(0), 0, b"a");
        gate.offer(Port::Net(0), 0, b"b");
        *world.gate.lock().unwrap() = Some(gate.clone());
        gate.set_mode(GateMode::Open);
        assert_eq!(*world.said.lock().unwrap(), b"abc");
    }

    #[test]
    fn frames_of_a_permission_that_has_gone_stale_leave_with_the_next_one() {
        let world = Arc::new(World::default());
        let gate = Gate::new(world.clone(), EpochId(1));
        gate.set_mode(GateMode::Hold);
        gate.offer(Port::Net(0), 0, b"a");
        gate.offer(Port::Serial, 0, b"b");
        gate.seal();
        let left = gate.release_by(EpochId(1), clock::now() - Duration::from_millis(1));
        assert_eq!(*world.said.lock().unwrap(), b"b", "what is on a log may be there twice");
        assert_eq!(left, EpochId(0), "a replica still needs the frame");
        assert_eq!(gate.release_by(EpochId(1), Time(u64::MAX)), EpochId(1));
        assert_eq!(*world.said.lock().unwrap(), b"ba", "the frame leaves on younger word");
    }

    #[test]
    fn a_permission_that_goes_stale_between_two_frames_ends_there() {
        /// Takes longer for a frame than the permission lasts, as a process that is stopped does.
        #[derive(Debug)]
        struct Stopped(AtomicUsize, Time);
        impl OutputPort for Stopped {
            fn emit(&self, _: &Output) {
                self.0.fetch_add(1, Ordering::Relaxed);
                while clock::now() <= self.1 {
                    std::thread::yield_now();
                }
            }
            fn room(&self) {}
        }
        let by = clock::now() + Duration::from_millis(100);
        let world = Arc::new(Stopped(AtomicUsize::new(0), by));
        let gate = Gate::new(world.clone(), EpochId(1));
        gate.set_mode(GateMode::Hold);
        gate.offer(Port::Net(0), 0, b"a");
        gate.offer(Port::Net(0), 0, b"b");
        gate.seal();
        gate.release_by(EpochId(1), by);
        assert!(world.0.load(Ordering::Relaxed) <= 1);
    }

    #[test]
    fn a_gate_that_is_shut_while_output_leaves_stops() {
        /// Shuts the gate at the first frame.
        #[derive(Debug, Default)]
        struct Shutter {
            gate: Mutex<Option<Arc<Gate>>>,
            said: AtomicUsize,
        }
        impl OutputPort for Shutter {
            fn emit(&self, _: &Output) {
                self.said.fetch_add(1, Ordering::Relaxed);
                if let Some(gate) = self.gate.lock().unwrap().take() {
                    gate.shut();
                }
            }
            fn room(&self) {}
        }
        let world = Arc::new(Shutter::default());
        let gate = Arc::new(Gate::new(world.clone(), EpochId(1)));
        gate.set_mode(GateMode::Hold);
        for _ in 0..100 {
            gate.offer(Port::Net(0), 0, b"a");
        }
        *world.gate.lock().unwrap() = Some(gate.clone());
        gate.release(EpochId(1));
        assert!(world.said.load(Ordering::Relaxed) <= CHUNK);
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
