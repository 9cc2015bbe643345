//! A request that had reached the old active is answered after the takeover without the client asking again.
//!
//! Judged only where nothing but the loss itself happened. The very last moments are left out: a frame that waited for the
//! end of a cut's pause died with its host.

use super::{Violation, Witness, ms};
use crate::clock::MS;
use crate::guest::Request;

const NAME: &str = "prompt_replay";

/// Longer than the pause of a cut.
const LAST_MOMENT: u64 = MS;
/// Time the new active gets after it has told the switch where the guest is.
const SOON: u64 = 20 * MS;

pub(super) fn check(w: &Witness) -> Result<(), Violation> {
    if !w.contract.prompt {
        return Ok(());
    }
    let mut reigns = w.ledger.windows(2).filter(|pair| pair[0].1.active != pair[1].1.active);
    reigns.try_for_each(|pair| between(w, pair[0].1.active, pair[1].1.active))
}

fn between(
    w: &Witness,
    old: mycelium_ram_core::Member,
    new: mycelium_ram_core::Member,
) -> Result<(), Violation> {
    let Some(last_word) = w.answers.iter().filter(|(_, m, _)| *m == old).map(|(at, ..)| *at).max() else {
        return Ok(());
    };
    let Some(announced) = w.voices.get(&new).and_then(|v| v.announced) else { return Ok(()) };
    let deadline = announced + SOON;
    let answered = |r: &Request, by: u64| {
        w.answers.iter().any(|(at, _, a)| *at <= by && (a.client, a.seq) == (r.client, r.seq))
    };
    let to_old = w.delivered.iter().filter(|(at, m, _)| *m == old && at + LAST_MOMENT <= last_word);
    for (at, _, request) in to_old {
        if !answered(request, deadline) {
            return Err(Violation::new(
                NAME,
                format!(
                    "{request:?} reached {} at {}, before its last word at {}; {} announced itself at {} and had not answered by {}",
                    w.name(old),
                    ms(*at),
                    ms(last_word),
                    w.name(new),
                    ms(announced),
                    ms(deadline)
                ),
            ));
        }
    }
    Ok(())
}
