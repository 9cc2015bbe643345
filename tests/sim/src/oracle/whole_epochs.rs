//! Promise 2: an image is always that of the end of an epoch, registers and memory together.

use super::{Final, Violation, Witness, ms};
use crate::guest::Guest;

const NAME: &str = "whole_epochs";

pub(super) fn check(w: &Witness, last: &Final) -> Result<(), Violation> {
    if let Some((at, member, why)) = w.broken.first() {
        return Err(Violation::new(
            NAME,
            format!("{} took over at {} and its guest cannot run: {why}", w.name(*member), ms(*at)),
        ));
    }
    for survivor in last.active.iter().chain(&last.replicas) {
        if let Err(why) = Guest::resume(survivor.pages.clone(), &survivor.state) {
            return Err(Violation::new(
                NAME,
                format!("the image of {} is torn: {why}", w.name(survivor.member)),
            ));
        }
    }
    Ok(())
}
