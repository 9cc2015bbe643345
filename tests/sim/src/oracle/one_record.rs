//! Promise 3: the record is one line of changes. Each follows from the one before, none is ever forgotten, and nobody
//! becomes the active whom the record did not list: not a replica that was seeding, and not one that was let go.

use mycelium_ram_core::record::Record;

use super::{Final, Violation, Witness, ms};

const NAME: &str = "one_record";

pub(super) fn check(w: &Witness, last: &Final) -> Result<(), Violation> {
    for pair in w.ledger.windows(2) {
        let [(_, before), (at, after)] = pair else { continue };
        follows(w, before, after)
            .map_err(|why| Violation::new(NAME, format!("the record changed at {}: {why}", ms(*at))))?;
    }
    match w.ledger.last() {
        Some((at, newest)) if *newest != last.record => {
            let (version, now) = (newest.version, last.record.version);
            let at = ms(*at);
            Err(Violation::new(
                NAME,
                format!("version {version} of {at} is forgotten, the record is at {now}"),
            ))
        }
        _ => Ok(()),
    }
}

fn follows(w: &Witness, before: &Record, after: &Record) -> Result<(), String> {
    let who = w.name(after.active);
    if after.version != before.version + 1 {
        return Err(format!("version {} follows {}", after.version, before.version));
    }
    match (after.generation == before.generation, after.active == before.active) {
        (true, true) => Ok(()),
        (true, false) => Err(format!("{who} is a second active of {}", after.generation)),
        (false, _) if after.generation != before.generation.next() => {
            Err(format!("{} follows {}", after.generation, before.generation))
        }
        (false, _) if !before.lists(after.active) => {
            Err(format!("{who} takes over, and the record did not list it"))
        }
        (false, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use mycelium_ram_core::record::{Change, LossPolicy, Swap, Verdict, decide};
    use mycelium_ram_core::{EpochId, Incarnation, Member, NodeId, OpId, VmId};

    fn member(n: u8) -> Member {
        Member { node: NodeId([n; 32]), incarnation: Incarnation(n.into()) }
    }

    fn applied(current: Option<&Record>, proposer: u8, count: u64, change: Change) -> Record {
        let proposer = member(proposer);
        let op = OpId { incarnation: proposer.incarnation, count };
        let expected_version = current.map_or(0, |r| r.version);
        let vm = VmId::new("vm").unwrap();
        match decide(current, &Swap { vm, expected_version, proposer, op, change }) {
            Verdict::Apply(record) => record,
            other => panic!("{other:?}"),
        }
    }

    /// The active 1 has listed 2: both may propose now.
    fn protected() -> Vec<Record> {
        let created = applied(None, 1, 1, Change::Create { policy: LossPolicy::Degrade });
        let list = Change::List { member: member(2), since: EpochId(4) };
        let listed = applied(Some(&created), 1, 2, list);
        vec![created, listed]
    }

    fn explained(ledger: &[Record], now: &Record) -> Option<String> {
        let mut witness = Witness::new(&Scenario::draw(0));
        (0..).zip(ledger).for_each(|(at, record)| witness.record(at, record));
        let last = Final {
            record: now.clone(),
            active: None,
            replicas: Vec::new(),
            down_for_good: false,
            unanswered: Vec::new(),
            now: 9,
        };
        check(&witness, &last).err().map(|v| v.explanation)
    }

    #[test]
    fn an_arbiter_that_forgets_a_takeover_is_seen_with_the_next_change_and_without() {
        let mut ledger = protected();
        let listed = ledger[1].clone();
        let taken = applied(Some(&listed), 2, 1, Change::TakeOver { epoch: EpochId(9) });
        ledger.push(taken.clone());
        assert_eq!(explained(&ledger, &taken), None);
        assert!(explained(&ledger, &listed).unwrap().contains("version 3 of 0.000 ms is forgotten"));

        let alone = applied(Some(&listed), 1, 3, Change::Unlist { member: member(2) });
        ledger.push(alone.clone());
        assert!(explained(&ledger, &alone).unwrap().contains("version 3 follows 3"));
    }

    #[test]
    fn a_replica_that_was_let_go_and_takes_over_is_seen() {
        let mut ledger = protected();
        let taken = applied(ledger.last(), 2, 1, Change::TakeOver { epoch: EpochId(9) });
        ledger.push(applied(ledger.last(), 1, 3, Change::Unlist { member: member(2) }));
        let taken = Record { version: 4, ..taken };
        ledger.push(taken.clone());
        assert!(explained(&ledger, &taken).unwrap().contains("the record did not list it"));
    }

    #[test]
    fn two_actives_of_one_generation_are_seen() {
        let mut ledger = protected();
        let usurped = Record { version: 3, active: member(2), ..ledger[1].clone() };
        ledger.push(usurped.clone());
        assert!(explained(&ledger, &usurped).unwrap().contains("a second active of g1"));
    }
}
