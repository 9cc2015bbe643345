//! The output gate's queue: what the guest said in an epoch waits here until the epoch has committed.

use std::collections::VecDeque;

use crate::ids::EpochId;
use crate::limits;

/// Whether output waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateMode {
    /// Unprotected: output leaves at once.
    Open,
    /// Protected: output waits for its epoch.
    Hold,
    /// Protected, in `async`: output leaves at once while the lease lasts, and waits when it has ended.
    Leased,
}

/// What happened to an output offered to the gate.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered<T> {
    /// The gate is open: let it out now.
    Pass(T),
    /// It waits for its epoch.
    Held,
    /// There is no room: the device keeps it and offers it again after the next release.
    Full(T),
}

/// Outputs in the order in which the guest made them, each with the epoch it was made in.
#[derive(Debug)]
pub struct OutputQueue<T> {
    mode: GateMode,
    open: EpochId,
    held: VecDeque<(EpochId, usize, T)>,
    bytes: usize,
}

impl<T> OutputQueue<T> {
    /// A queue for a guest that runs in epoch `open`.
    #[must_use]
    pub fn new(mode: GateMode, open: EpochId) -> Self {
        Self { mode, open, held: VecDeque::new(), bytes: 0 }
    }

    /// Offers an output of `bytes` bytes made now; `lease` says whether one lasts.
    pub fn offer(&mut self, item: T, bytes: usize, lease: bool) -> Offered<T> {
        let opens = match self.mode {
            GateMode::Open => true,
            GateMode::Hold => false,
            GateMode::Leased => lease,
        };
        if opens && self.held.is_empty() {
            return Offered::Pass(item);
        }
        self.hold(item, bytes)
    }

    /// As [`OutputQueue::offer`], but for as long as earlier output is still on its way out: it waits behind that.
    pub fn hold(&mut self, item: T, bytes: usize) -> Offered<T> {
        if self.bytes + bytes > limits::GATE_BYTES || self.held.len() >= limits::OUTPUTS {
            return Offered::Full(item);
        }
        self.held.push_back((self.open, bytes, item));
        self.bytes += bytes;
        Offered::Held
    }

    /// Ends the open epoch, with the guest paused; later outputs belong to the next one.
    pub fn seal(&mut self) -> EpochId {
        let sealed = self.open;
        self.open = sealed.next();
        sealed
    }

    /// The epoch the guest runs in.
    #[must_use]
    pub fn open_epoch(&self) -> EpochId {
        self.open
    }

    /// Outputs made after `base` and up to `epoch` that still wait: what a replica needs with that epoch.
    pub fn between(&self, base: EpochId, epoch: EpochId) -> impl Iterator<Item = &T> {
        self.held.iter().filter(move |(e, _, _)| *e > base && *e <= epoch).map(|(_, _, item)| item)
    }

    /// Takes out every output of the epochs up to `through`, in order.
    pub fn release(&mut self, through: EpochId) -> Vec<T> {
        self.take(through).into_iter().map(|(_, _, item)| item).collect()
    }

    /// As [`OutputQueue::release`], each with its epoch and its bytes.
    pub fn take(&mut self, through: EpochId) -> Vec<(EpochId, usize, T)> {
        let end = self.held.partition_point(|(e, _, _)| *e <= through);
        let out: Vec<_> = self.held.drain(..end).collect();
        self.bytes -= out.iter().map(|(_, bytes, _)| bytes).sum::<usize>();
        out
    }

    /// What was taken out and has not left after all waits again, before everything else.
    pub fn put_back(&mut self, taken: Vec<(EpochId, usize, T)>) {
        for held in taken.into_iter().rev() {
            self.bytes += held.1;
            self.held.push_front(held);
        }
    }

    /// Whether output waits.
    #[must_use]
    pub fn mode(&self) -> GateMode {
        self.mode
    }

    /// Switches the gate. Opening it does not let out what waits: release that first.
    pub fn set_mode(&mut self, mode: GateMode) {
        self.mode = mode;
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether anything made in the open epoch waits.
    #[must_use]
    pub fn open_epoch_has_output(&self) -> bool {
        self.held.back().is_some_and(|(e, _, _)| *e == self.open)
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops everything that waits (a deposed primary must not release it).
    pub fn discard(&mut self) {
        self.held.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_leaves_first() {
        let mut q = OutputQueue::new(GateMode::Hold, EpochId(1));
        q.offer('a', 10, false);
        q.offer('b', 20, false);
        q.seal();
        q.offer('c', 5, false);
        let mut taken = q.take(EpochId(1));
        assert_eq!((taken.len(), q.bytes()), (2, 5));
        taken.remove(0);
        q.put_back(taken);
        assert_eq!(q.bytes(), 25);
        assert_eq!(q.release(EpochId(0)), []);
        assert_eq!(q.release(EpochId(2)), ['b', 'c']);
    }

    #[test]
    fn a_leased_gate_is_open_while_the_lease_lasts_and_nothing_waits() {
        let mut q = OutputQueue::new(GateMode::Leased, EpochId(1));
        assert_eq!(q.offer('a', 1, true), Offered::Pass('a'));
        assert_eq!(q.offer('b', 1, false), Offered::Held);
        assert_eq!(q.offer('c', 1, true), Offered::Held, "it does not overtake");
        q.seal();
        assert_eq!(q.release(EpochId(1)), ['b', 'c']);
        assert_eq!(q.offer('d', 1, true), Offered::Pass('d'));
    }

    #[test]
    fn nothing_leaves_before_its_epoch() {
        let mut q = OutputQueue::new(GateMode::Hold, EpochId(1));
        assert_eq!(q.offer('a', 10, false), Offered::Held);
        assert_eq!(q.seal(), EpochId(1));
        assert_eq!(q.offer('b', 10, false), Offered::Held);
        assert_eq!(q.release(EpochId(0)), []);
        assert_eq!(q.release(EpochId(1)), ['a']);
        assert_eq!(q.bytes(), 10);
        assert_eq!(q.between(EpochId(1), EpochId(2)).collect::<Vec<_>>(), [&'b']);
        assert_eq!(q.release(EpochId(2)), ['b']);
        assert!(!q.is_pending());
    }

    #[test]
    fn the_gate_is_bounded() {
        let mut q = OutputQueue::new(GateMode::Hold, EpochId(1));
        assert_eq!(q.offer((), limits::GATE_BYTES, false), Offered::Held);
        assert_eq!(q.offer((), 1, false), Offered::Full(()));
        q.seal();
        q.release(EpochId(1));
        assert_eq!(q.offer((), 1, false), Offered::Held);
    }

    #[test]
    fn an_open_gate_never_overtakes_what_waits() {
        let mut q = OutputQueue::new(GateMode::Hold, EpochId(1));
        q.offer('a', 1, false);
        q.set_mode(GateMode::Open);
        assert_eq!(q.offer('b', 1, false), Offered::Held);
        q.seal();
        assert_eq!(q.release(EpochId(1)), ['a', 'b']);
        assert_eq!(q.offer('c', 1, false), Offered::Pass('c'));
    }
}
