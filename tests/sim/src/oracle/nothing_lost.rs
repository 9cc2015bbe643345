//! Promise 4: every page has the content that the history gives it, on the active and on every listed replica.

use super::reference::{Reference, execute, past};
use super::{Final, Survivor, Violation, Witness};
use crate::guest::Guest;

const NAME: &str = "nothing_lost";

pub(super) fn check(w: &Witness, last: &Final, reference: &Reference) -> Result<(), Violation> {
    last.active.iter().chain(&last.replicas).try_for_each(|survivor| compare(w, survivor, reference))
}

fn compare(w: &Witness, survivor: &Survivor, reference: &Reference) -> Result<(), Violation> {
    let who = w.name(survivor.member);
    let fail = |why: String| Err(Violation::new(NAME, why));
    let Ok(guest) = Guest::resume(survivor.pages.clone(), &survivor.state) else { return Ok(()) };
    let executed;
    // Most survivors are where the one is that the reference was made of.
    let right = match reference.machine.as_ref().filter(|machine| machine.history() == guest.history()) {
        Some(machine) => machine,
        None => {
            let Some(entries) = past(w, guest.history()) else {
                return fail(format!("{who} is at step {}, which no guest has ever reached", guest.step()));
            };
            executed = execute(&entries).0;
            &executed
        }
    };
    let wrong: Vec<_> = (0..right.pages().len()).filter(|p| right.pages()[*p] != guest.pages()[*p]).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    fail(format!(
        "{who} is at step {}, and its pages {wrong:?} do not have the content of an uninterrupted machine",
        guest.step()
    ))
}
