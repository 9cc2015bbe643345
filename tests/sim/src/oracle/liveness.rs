//! After everything is healed the VM answers everybody and is protected again, if anybody is left who may run it.
//!
//! Down for good is legal when the record's active is gone and with it everybody it lists, unless the class of the run
//! promises more. Even then it is legal when the active had itself let its replica go, in the record, before it died.

use super::{Final, Violation, Witness, ms};

const NAME: &str = "liveness";

pub(super) fn check(w: &Witness, last: &Final) -> Result<(), Violation> {
    let fail = |why: String| Err(Violation::new(NAME, why));
    if w.livelock {
        return fail(format!("time stands still at {}: events never end", ms(last.now)));
    }
    if last.down_for_good {
        let mut reign = w.ledger.iter().filter(|(_, r)| r.generation == last.record.generation);
        let let_go = last.record.in_sync.is_empty() && reign.any(|(_, r)| !r.in_sync.is_empty());
        if w.contract.survives && !let_go {
            return fail(format!(
                "the VM is down for good: {} was the active of {} and listed {} replicas",
                w.name(last.record.active),
                last.record.generation,
                last.record.in_sync.len()
            ));
        }
        return Ok(());
    }
    if w.well_after.is_none() {
        let listed: Vec<_> = last.record.in_sync.iter().map(|l| w.name(l.member)).collect();
        return fail(format!(
            "long after everything was healed, {} is the active of {}, listed are {listed:?}, unanswered are {:?}",
            w.name(last.record.active),
            last.record.generation,
            last.unanswered
        ));
    }
    if let Some(request) = last.unanswered.first() {
        return fail(format!("{request:?} is never answered"));
    }
    Ok(())
}
