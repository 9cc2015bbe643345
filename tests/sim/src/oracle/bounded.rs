//! Promise 5: queues stay within their bounds.

use super::{Violation, Witness, ms};

pub(super) fn check(w: &Witness) -> Result<(), Violation> {
    match w.unbounded.first() {
        None => Ok(()),
        Some((at, member, what)) => {
            Err(Violation::new("bounded", format!("{} at {}: {what}", w.name(*member), ms(*at))))
        }
    }
}
