//! Frames on their way into the guest. The active numbers each frame as it enters the guest and forwards it; the replica
//! keeps those the committed state has not seen and gives them to the guest at takeover, so that no client has to wait
//! for its own retransmission timer. Best effort: a lost frame is a frame lost on Ethernet.

use std::collections::BTreeMap;

use crate::ids::IngressSeq;
use crate::limits;
use crate::sabotage::{Sabotage, sabotaged};

/// What the replica keeps.
#[derive(Debug)]
pub struct IngressLog<T> {
    frames: BTreeMap<IngressSeq, (usize, T)>,
    bytes: usize,
    seen: IngressSeq,
}

impl<T> Default for IngressLog<T> {
    fn default() -> Self {
        Self { frames: BTreeMap::new(), bytes: 0, seen: IngressSeq(0) }
    }
}

impl<T> IngressLog<T> {
    /// Keeps a forwarded frame of `bytes` bytes, unless the committed state has it already. Over the bound the oldest
    /// frames go first: their senders are the nearest to retransmitting.
    pub fn keep(&mut self, seq: IngressSeq, bytes: usize, frame: T) {
        if seq <= self.seen || self.frames.contains_key(&seq) {
            return;
        }
        self.frames.insert(seq, (bytes, frame));
        self.bytes += bytes;
        while self.bytes > limits::INGRESS_BYTES {
            let Some((_, (bytes, _))) = self.frames.pop_first() else { break };
            self.bytes -= bytes;
        }
    }

    /// The state now staged has seen every frame up to `through`.
    pub fn seen(&mut self, through: IngressSeq) {
        self.seen = self.seen.max(through);
        let rest = self.frames.split_off(&through.next());
        let gone = std::mem::replace(&mut self.frames, rest);
        self.bytes -= gone.values().map(|(bytes, _)| bytes).sum::<usize>();
    }

    /// The newest frame the staged state has seen.
    #[must_use]
    pub fn seen_through(&self) -> IngressSeq {
        self.seen
    }

    /// Frames to give to the guest at takeover, in their order.
    pub fn replay(&mut self) -> Vec<T> {
        self.bytes = 0;
        let frames = std::mem::take(&mut self.frames);
        if sabotaged(Sabotage::IngressReplayDropped) {
            return Vec::new();
        }
        frames.into_values().map(|(_, frame)| frame).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replays_in_order_what_the_state_has_not_seen() {
        let mut log = IngressLog::default();
        for seq in [3, 1, 2, 5, 5] {
            log.keep(IngressSeq(seq), 100, seq);
        }
        log.seen(IngressSeq(2));
        log.keep(IngressSeq(1), 100, 1);
        assert_eq!(log.replay(), [3, 5]);
        assert_eq!(log.replay(), Vec::<u64>::new());
    }

    #[test]
    fn is_bounded() {
        let mut log = IngressLog::default();
        for seq in 1..=10 {
            log.keep(IngressSeq(seq), limits::INGRESS_BYTES / 4, seq);
        }
        assert_eq!(log.replay(), [7, 8, 9, 10]);
    }
}
