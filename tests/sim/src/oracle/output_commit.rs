//! Promise 1: whatever was let out is part of the history that went on. In `async` it may not be; see `exposure.rs`.

use mycelium_ram_core::mode::Mode;

use super::reference::Reference;
use super::{Final, Violation, Witness, ms};

const NAME: &str = "output_commit";

pub(super) fn check(w: &Witness, last: &Final, reference: &Reference) -> Result<(), Violation> {
    for (at, from, answer) in &w.answers {
        match reference.answers.get(&answer.step) {
            Some(right) if right == answer => {}
            Some(right) if right.history != answer.history && w.lease_at(*from, *at).is_some() => {}
            None if w.lease_at(*from, *at).is_some() => {}
            Some(right) if right.history == answer.history => {
                return Err(Violation::new(
                    NAME,
                    format!(
                        "{} let out an answer at {} computed from memory that never was: {answer:?}, an uninterrupted machine says {right:?}",
                        w.name(*from),
                        ms(*at),
                    ),
                ));
            }
            _ => {
                let whose = if reference.exists { "the surviving guest" } else { "the longest history" };
                return Err(Violation::new(
                    NAME,
                    format!(
                        "{} let out {answer:?} at {}, but in the history of {whose} that never happened",
                        w.name(*from),
                        ms(*at)
                    ),
                ));
            }
        }
    }
    listed_replicas_know_all(w, last)
}

/// Whoever the record lists at the end could go on from what it holds.
fn listed_replicas_know_all(w: &Witness, last: &Final) -> Result<(), Violation> {
    if last.record.mode != Mode::Sync {
        return Ok(());
    }
    for replica in &last.replicas {
        let Ok(guest) = crate::guest::Guest::resume(replica.pages.clone(), &replica.state) else { continue };
        let newest = w.answers.iter().map(|(_, _, a)| a.step).max().unwrap_or(0);
        if guest.step() < newest {
            return Err(Violation::new(
                NAME,
                format!(
                    "{} is listed but knows only {} steps, and output of step {newest} has left",
                    w.name(replica.member),
                    guest.step()
                ),
            ));
        }
    }
    Ok(())
}
