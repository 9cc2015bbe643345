//! Promise 6: output leaves unprotected only when the record says that nobody protects.
//!
//! From outside: an answer to a request that reached the guest when every listed replica was already gone cannot have been
//! acknowledged by any of them. So the record must have let them go before the answer left. Under the policy `halt` it
//! must not leave at all until a replica is listed again; and nothing may leave when the record lists nobody, whoever has
//! acknowledged it.

use mycelium_ram_core::Member;
use mycelium_ram_core::record::{LossPolicy, Record};

use super::{Violation, Witness, ms};
use crate::guest::Request;
use crate::limits;

const NAME: &str = "degrade_in_open";

pub(super) fn check(w: &Witness) -> Result<(), Violation> {
    for (at, from, answer) in &w.answers {
        // What reached a predecessor first may be its committed answer, repeated.
        let same = |r: &Request| (r.client, r.seq) == (answer.client, answer.seq);
        let asked = w.delivered.iter().find(|(_, _, r)| same(r)).filter(|(_, to, _)| to == from);
        let Some((asked_at, ..)) = asked else { continue };
        // The records in force at any time between the question and the answer.
        let after = w.ledger.partition_point(|(t, _)| t <= asked_at);
        let until = w.ledger.partition_point(|(t, _)| t <= at);
        let records = &w.ledger[after.saturating_sub(1)..until];
        let mine = || records.iter().filter(|(_, r)| r.active == *from);
        if halts_unheeded(w, *from, *at) {
            let (who, at) = (w.name(*from), ms(*at));
            return Err(Violation::new(
                NAME,
                format!("{who} let {answer:?} out at {at}, when the record listed nobody under `halt`"),
            ));
        }
        let alone = mine().any(|(_, r)| r.in_sync.is_empty() && r.policy == LossPolicy::Degrade);
        // A lease lasts beyond whoever gave it.
        let lease = w
            .lease_at(*from, *at)
            .map_or(0, |lease| u64::try_from(lease.outwaited().as_nanos()).expect("seconds"));
        let alive_at = (*asked_at).min(at.saturating_sub(lease));
        let guarded = mine().any(|(_, r)| guards(w, r, alive_at));
        if !alone && !guarded && mine().next().is_some() {
            let (who, at, asked_at) = (w.name(*from), ms(*at), ms(*asked_at));
            return Err(Violation::new(
                NAME,
                format!(
                    "{who} let {answer:?} out at {at}, asked at {asked_at}; no listed replica lived and the record does not allow it"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether under `halt` the record lists nobody then, and did not when the release may have been decided.
fn halts_unheeded(w: &Witness, active: Member, then: u64) -> bool {
    let until = w.ledger.partition_point(|(t, _)| *t <= then);
    let decided = w.ledger.partition_point(|(t, _)| t + limits::RELEASE_WINDOW_NS <= then);
    let mut lately = w.ledger[decided.saturating_sub(1)..until].iter();
    lately.all(|(_, r)| r.policy == LossPolicy::Halt && r.active == active && r.in_sync.is_empty())
}

/// Whether the record lists somebody who was alive then.
fn guards(w: &Witness, record: &Record, then: u64) -> bool {
    record.in_sync.iter().any(|l| w.ended.get(&l.member).is_none_or(|end| *end >= then))
}
