//! Promise 3: only who the record calls active speaks, and when a new active speaks the old one falls silent.

use std::collections::BTreeMap;

use super::{Violation, Voice, Witness, ms};
use crate::clock::MS;
use crate::guest::Answer;
use crate::limits;

const NAME: &str = "one_active";

/// A primary releases on word that is this young, or twice the round trip; then a decision is carried out at once.
const FRESH: u64 = 50 * MS;

fn fail(explanation: String) -> Result<(), Violation> {
    Err(Violation::new(NAME, explanation))
}

pub(super) fn check(w: &Witness) -> Result<(), Violation> {
    only_actives_speak(w)?;
    same_step_same_words(w)?;
    the_old_one_falls_silent(w)?;
    the_record_is_true(w)
}

fn only_actives_speak(w: &Witness) -> Result<(), Violation> {
    for (member, Voice { first: at, .. }) in &w.voices {
        match w.reign(*member) {
            Some((since, _)) if since <= *at => {}
            _ => {
                let who = w.name(*member);
                return fail(format!("{who} spoke at {} and the record never made it the active", ms(*at)));
            }
        }
    }
    Ok(())
}

fn same_step_same_words(w: &Witness) -> Result<(), Violation> {
    let mut said: BTreeMap<u64, &Answer> = BTreeMap::new();
    // What is lost in `async` is said again, and differently.
    let waited = w.answers.iter().filter(|(at, from, _)| w.lease_at(*from, *at).is_none());
    for (at, from, answer) in waited {
        let first = said.entry(answer.step).or_insert(answer);
        if *first != answer {
            let who = w.name(*from);
            return fail(format!(
                "{who} said {answer:?} at {}, but {first:?} had been said of that step",
                ms(*at)
            ));
        }
    }
    Ok(())
}

fn the_old_one_falls_silent(w: &Witness) -> Result<(), Violation> {
    let grace = FRESH.max(2 * w.contract.round_trip) + limits::RELEASE_WINDOW_NS + MS;
    let reigns: Vec<_> = w
        .voices
        .iter()
        .filter_map(|(m, voice)| w.reign(*m).map(|(_, generation)| (generation, voice.first, *m)))
        .collect();
    for (at, from, _) in &w.answers {
        let Some((_, generation)) = w.reign(*from) else { continue };
        let newer = reigns.iter().filter(|(g, first, _)| *g > generation && first + grace < *at).min();
        if let Some((_, first, successor)) = newer {
            let (old, new) = (w.name(*from), w.name(*successor));
            let (at, first) = (ms(*at), ms(*first));
            return fail(format!("{old} still let output out at {at}, when {new} had spoken since {first}"));
        }
    }
    Ok(())
}

/// Stale primaries and returning disks go by the takeover epoch in the record.
fn the_record_is_true(w: &Witness) -> Result<(), Violation> {
    for (at, member, epoch) in &w.resumed {
        let said = w.ledger.iter().find(|(_, r)| r.active == *member).and_then(|(_, r)| r.takeover_epoch);
        if said != Some(*epoch) {
            let who = w.name(*member);
            return fail(format!("{who} resumed from {epoch} at {}, the record says {said:?}", ms(*at)));
        }
    }
    Ok(())
}
