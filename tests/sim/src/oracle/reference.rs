//! The oracle's own execution: one machine that never fails, fed with the history that survived.

use std::collections::BTreeMap;

use super::{Final, Witness};
use crate::guest::{Answer, Entry, GENESIS, Guest};

/// What the history that survived should have led to.
#[derive(Debug, Default)]
pub(super) struct Reference {
    /// The history that survived, with the answer to each request by the step it was executed in.
    pub(super) answers: BTreeMap<u64, Answer>,
    /// An uninterrupted machine at its end.
    pub(super) machine: Option<Guest>,
    /// Whether some guest survived.
    pub(super) exists: bool,
}

/// The entries that lead to a history, or none when it has no known past.
pub(super) fn past(w: &Witness, mut history: u64) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while history != GENESIS {
        let (before, entry) = w.history.get(&history)?;
        entries.push(*entry);
        history = *before;
    }
    entries.reverse();
    Some(entries)
}

/// Runs a history on a fresh machine.
pub(super) fn execute(entries: &[Entry]) -> (Guest, BTreeMap<u64, Answer>) {
    let (mut guest, mut answers) = (Guest::boot(), BTreeMap::new());
    for entry in entries {
        if let Some(answer) = guest.apply(entry) {
            answers.insert(answer.step, answer);
        }
    }
    (guest, answers)
}

impl Reference {
    /// The survivor's history; when nobody survived, the longest that was ever answered from.
    pub(super) fn of(w: &Witness, last: &Final) -> Self {
        let survived = last.active.as_ref().and_then(|s| Guest::resume(s.pages.clone(), &s.state).ok());
        let deepest = || w.answers.iter().map(|(_, _, a)| (a.step, a.history)).max();
        let history = survived.as_ref().map(Guest::history).or_else(|| deepest().map(|(_, h)| h));
        let Some(entries) = history.and_then(|h| past(w, h)) else { return Self::default() };
        let (machine, answers) = execute(&entries);
        Self { answers, machine: Some(machine), exists: survived.is_some() }
    }
}
