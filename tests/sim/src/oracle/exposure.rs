//! What `async` may lose, and from whom: the newest moments of an active, no longer than its record says, and nothing that
//! leaves after its successor has spoken.

use std::collections::BTreeMap;

use mycelium_ram_core::Member;

use super::reference::Reference;
use super::{Violation, Witness, ms};
use crate::clock::MS;
use crate::limits;

const NAME: &str = "exposure";

pub(super) fn check(w: &Witness, reference: &Reference) -> Result<(), Violation> {
    let mut first_lost: BTreeMap<Member, u64> = BTreeMap::new();
    for (at, from, answer) in w.lost_in_async(reference) {
        let (who, when) = (w.name(*from), ms(*at));
        let fail =
            |why: String| Err(Violation::new(NAME, format!("{who} let {answer:?} out at {when}, {why}")));
        let Some((_, generation)) = w.reign(*from) else { continue };
        let newer = |m: &Member| w.reign(*m).is_some_and(|(_, g)| g > generation);
        let spoken =
            w.voices.iter().filter(|(m, voice)| newer(m) && voice.first < *at).map(|(m, _)| m).next();
        if let Some(successor) = spoken {
            return fail(format!(
                "which nobody had committed, when {} had spoken already",
                w.name(*successor)
            ));
        }
        let Some(lease) = w.lease_at(*from, *at) else { continue };
        // Clocks that are 200 ppm fast shorten it; a frame leaves a moment after the look at the clock.
        let bound =
            u64::try_from(lease.exposure().as_nanos()).expect("seconds") + limits::RELEASE_WINDOW_NS + MS;
        let first = *first_lost.entry(*from).or_insert(*at);
        if at - first > bound {
            return fail(format!(
                "and what it had said since {} is lost, too: more than {}",
                ms(first),
                ms(bound)
            ));
        }
    }
    Ok(())
}
