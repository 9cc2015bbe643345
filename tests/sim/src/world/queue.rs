//! What is to happen, in the order of its time. The heap moves small keys about; the events stay where they are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Event;

/// Events to come. Of those of one time the one put in first comes first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Time, how many were put in before, and where the event is.
    keys: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    count: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: u64, event: Event) {
        self.count += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.keys.push(Reverse((at, self.count, place)));
    }

    /// The next event, its time, and how many were put in before it.
    pub(super) fn pop(&mut self) -> Option<(u64, u64, Event)> {
        let Reverse((at, order, place)) = self.keys.pop()?;
        self.free.push(place);
        self.events[place].take().map(|event| (at, order, event))
    }
}
