//! The passive side's rules, one test each. They read as the protocol's documentation.

use super::*;
use crate::record::tests::{member, swap};
use crate::record::{LossPolicy, Refusal, Verdict, decide};

const MS: Duration = Duration::from_millis(1);

/// A replica on a desk: member 2, following member 1.
struct Desk {
    replica: Replica,
    record: Record,
    now: Time,
    actions: Vec<Action>,
    arbiter_answers: bool,
}

fn apply(current: Option<&Record>, who: u8, version: u64, count: u64, change: Change) -> Record {
    match decide(current, &swap(member(who), version, count, change)) {
        Verdict::Apply(record) => record,
        other => panic!("{other:?}"),
    }
}

impl Desk {
    fn new() -> Self {
        let record = apply(None, 1, 0, 1, Change::Create { policy: LossPolicy::Degrade });
        let now = Time::from_ms(5_000);
        let vm = record.vm.clone();
        let replica = Replica::new(ReplicaConfig::default(), vm, member(2), (member(1), Generation(1)), now);
        Self { replica, record, now, actions: Vec::new(), arbiter_answers: true }
    }

    /// One that holds epoch 4 and is listed.
    fn listed() -> Self {
        let mut desk = Self::new();
        desk.tell(Event::Staged(EpochId(4)));
        desk.change(1, Change::List { member: member(2), since: EpochId(4) });
        desk.follow(250);
        assert!(desk.replica.is_listed());
        desk.actions.clear();
        desk
    }

    /// Somebody changes the record.
    fn change(&mut self, who: u8, change: Change) {
        let version = self.record.version;
        self.record = apply(Some(&self.record), who, version, 100 + version, change);
    }

    fn tell(&mut self, event: Event) {
        let mut out = Vec::new();
        self.replica.handle(self.now, event, &mut out);
        self.actions.extend(out.iter().cloned());
        for action in out {
            match action {
                Action::Arbiter(request) if self.arbiter_answers => self.answer(&request),
                _ => {}
            }
        }
    }

    /// The active has stopped its guest, just now.
    fn yielded(&mut self, generation: u64, epoch: u64) {
        let (generation, epoch) = (Generation(generation), EpochId(epoch));
        self.tell(Event::Yielded(Yield { generation, epoch, sent_at: self.now }));
    }

    fn answer(&mut self, request: &Request) {
        let reply = match request {
            Request::Read => Reply::Record(Some(self.record.clone())),
            Request::Swap(swap) => match decide(Some(&self.record), swap) {
                Verdict::Apply(record) => {
                    self.record = record.clone();
                    Reply::Applied { op: swap.op, record }
                }
                Verdict::Already => Reply::Applied { op: swap.op, record: self.record.clone() },
                Verdict::Refuse(refusal) => {
                    Reply::Refused { op: swap.op, refusal, record: Some(self.record.clone()) }
                }
            },
        };
        self.tell(Event::Arbiter(reply));
    }

    /// Time passes with an active that is well.
    fn follow(&mut self, ms: u32) {
        for _ in 0..ms {
            self.now = self.now + MS;
            let heartbeat = Heartbeat {
                from: member(1),
                generation: Generation(1),
                sent_at: Time(self.now.0 / 7),
                echo: Some(self.now),
                progress: self.now.0,
                epoch: Some(EpochId(1)),
            };
            self.tell(Event::Heartbeat(heartbeat));
            self.tell(Event::Tick);
        }
    }

    /// Time passes in silence.
    fn silence(&mut self, ms: u32) {
        for _ in 0..ms {
            self.now = self.now + MS;
            self.tell(Event::Tick);
        }
    }

    fn acks(&self) -> Vec<Option<EpochId>> {
        let ack = |a: &Action| if let Action::Heartbeat(hb) = a { Some(hb.epoch) } else { None };
        self.actions.iter().filter_map(ack).collect()
    }

    fn swaps(&self) -> Vec<Swap> {
        let swap =
            |a: &Action| if let Action::Arbiter(Request::Swap(s)) = a { Some(s.clone()) } else { None };
        self.actions.iter().filter_map(swap).collect()
    }

    fn promoted(&self) -> Option<(EpochId, Generation)> {
        let promote =
            |a: &Action| if let Action::Promote(e, r) = a { Some((*e, r.generation)) } else { None };
        self.actions.iter().find_map(promote)
    }

    fn expelled(&self) -> Option<Expulsion> {
        let expelled = |a: &Action| if let Action::Expelled(why) = a { Some(*why) } else { None };
        self.actions.iter().find_map(expelled)
    }
}

#[test]
fn a_whole_epoch_is_acknowledged_at_once_and_with_every_heartbeat() {
    let mut desk = Desk::new();
    desk.tell(Event::Staged(EpochId(3)));
    assert_eq!(desk.acks(), [Some(EpochId(3))]);
    desk.follow(25);
    assert!(desk.acks().len() >= 3);
    assert!(desk.acks().iter().all(|a| *a == Some(EpochId(3))));
}

#[test]
fn silence_leads_to_a_takeover_in_one_round_trip() {
    let mut desk = Desk::listed();
    desk.tell(Event::Staged(EpochId(5)));
    desk.silence(80);
    assert_eq!(desk.promoted(), Some((EpochId(5), Generation(2))));
    assert_eq!(desk.record.takeover_epoch, Some(EpochId(5)));
    desk.actions.clear();
    desk.silence(50);
    assert!(desk.actions.is_empty(), "a promoted replica is somebody else's business");
}

#[test]
fn while_taking_it_acknowledges_nothing() {
    let mut desk = Desk::listed();
    desk.arbiter_answers = false;
    desk.silence(80);
    assert_eq!(desk.swaps().len(), 1);
    assert!(!desk.replica.may_stage());
    desk.actions.clear();
    desk.follow(50);
    assert_eq!(desk.acks(), [], "not even when the active is heard again");
}

#[test]
fn after_a_failed_swap_it_follows_again() {
    let mut desk = Desk::listed();
    desk.arbiter_answers = false;
    desk.silence(80);
    let op = desk.swaps()[0].op;
    // Another replica was listed meanwhile.
    desk.change(1, Change::List { member: member(3), since: EpochId(4) });
    let record = Some(desk.record.clone());
    desk.tell(Event::Arbiter(Reply::Refused { op, refusal: Refusal::Changed, record }));
    assert!(desk.replica.may_stage());
    desk.actions.clear();
    desk.follow(20);
    assert_eq!(desk.acks().first(), Some(&Some(EpochId(4))));
    assert!(desk.swaps().is_empty());
}

#[test]
fn a_lost_reply_leaves_it_silent_until_it_is_settled() {
    let mut desk = Desk::listed();
    desk.arbiter_answers = false;
    desk.silence(400);
    let swaps = desk.swaps();
    assert!(swaps.len() > 2);
    assert!(swaps.windows(2).all(|w| w[0] == w[1]), "the same operation each time");
    desk.actions.clear();
    desk.follow(20);
    assert_eq!(desk.acks(), []);
    // It had been applied at the first attempt; reading the record says so.
    desk.record =
        apply(Some(&desk.record), 2, swaps[0].expected_version, swaps[0].op.count, swaps[0].change.clone());
    desk.answer(&Request::Read);
    assert_eq!(desk.promoted(), Some((EpochId(4), Generation(2))));
}

#[test]
fn without_the_arbiter_it_does_not_even_try() {
    let mut desk = Desk::listed();
    desk.arbiter_answers = false;
    desk.follow(800);
    desk.actions.clear();
    desk.silence(300);
    assert!(desk.swaps().is_empty());
    assert!(desk.replica.may_stage(), "and it goes on acknowledging");
    assert!(!desk.acks().is_empty());
    // The arbiter is back.
    desk.arbiter_answers = true;
    desk.silence(30);
    assert!(desk.promoted().is_some());
}

#[test]
fn one_that_is_not_listed_never_takes_over() {
    let mut desk = Desk::new();
    desk.tell(Event::Staged(EpochId(4)));
    desk.follow(250);
    desk.silence(1_500);
    assert!(desk.swaps().is_empty());
    assert_eq!(desk.expelled(), None);
}

#[test]
fn one_that_was_abandoned_before_it_was_listed_starts_again() {
    let mut desk = Desk::new();
    desk.tell(Event::Staged(EpochId(4)));
    desk.follow(250);
    desk.silence(2_300);
    assert_eq!(desk.expelled(), Some(Expulsion::Abandoned));
}

#[test]
fn losing_the_race_against_degrade_expels_it() {
    let mut desk = Desk::listed();
    desk.change(1, Change::Unlist { member: member(2) });
    desk.silence(80);
    assert_eq!(desk.swaps().len(), 1, "it did not know better");
    assert_eq!(desk.promoted(), None);
    assert_eq!(desk.expelled(), Some(Expulsion::Unlisted));
}

#[test]
fn another_active_expels_it() {
    let mut desk = Desk::listed();
    desk.change(1, Change::List { member: member(3), since: EpochId(4) });
    desk.change(3, Change::TakeOver { epoch: EpochId(4) });
    desk.follow(250);
    let why = Expulsion::OtherActive { generation: Generation(2), by: member(3) };
    assert_eq!(desk.expelled(), Some(why));
}

#[test]
fn being_listed_late_is_noticed_soon_after_the_suspicion() {
    let mut desk = Desk::new();
    desk.tell(Event::Staged(EpochId(4)));
    desk.follow(250);
    desk.silence(70);
    desk.change(1, Change::List { member: member(2), since: EpochId(4) });
    desk.silence(15);
    assert!(desk.promoted().is_some());
}

#[test]
fn heartbeats_of_others_are_no_sign_of_life() {
    let mut desk = Desk::listed();
    for _ in 0..80 {
        desk.now = desk.now + MS;
        for (from, generation) in [(3, 1), (1, 9)] {
            desk.tell(Event::Heartbeat(Heartbeat {
                from: member(from),
                generation: Generation(generation),
                sent_at: Time(1),
                echo: Some(desk.now),
                progress: desk.now.0,
                epoch: None,
            }));
        }
        desk.tell(Event::Tick);
    }
    assert!(desk.promoted().is_some());
}

#[test]
fn a_replica_that_was_stopped_itself_suspects_nobody() {
    let mut desk = Desk::listed();
    desk.now = desk.now + Duration::from_secs(30);
    desk.tell(Event::Tick);
    assert!(desk.swaps().is_empty());
}

#[test]
fn stale_records_do_not_undo_newer_ones() {
    let mut desk = Desk::listed();
    let old = apply(None, 1, 0, 1, Change::Create { policy: LossPolicy::Degrade });
    desk.tell(Event::Arbiter(Reply::Record(Some(old))));
    assert!(desk.replica.is_listed());
    assert_eq!(desk.expelled(), None);
}

#[test]
fn a_guest_that_is_yielded_is_taken_without_waiting_for_silence() {
    let mut desk = Desk::listed();
    // Of another epoch than it holds, or of another generation.
    desk.yielded(1, 5);
    desk.yielded(2, 4);
    assert!(desk.swaps().is_empty());
    desk.yielded(1, 4);
    let promoted =
        |a: &Action| matches!(a, Action::Promote(EpochId(4), record) if record.active == member(2));
    assert!(desk.actions.iter().any(promoted), "{:?}", desk.actions);
}

#[test]
fn a_yielded_guest_is_not_taken_by_a_replica_that_is_not_listed() {
    let mut desk = Desk::new();
    desk.tell(Event::Staged(EpochId(4)));
    desk.follow(250);
    desk.yielded(1, 4);
    assert!(desk.swaps().is_empty());
}

#[test]
fn a_takeover_by_yielding_that_is_refused_is_tried_again() {
    let mut desk = Desk::listed();
    // The record has moved on since it was read.
    desk.change(1, Change::List { member: member(3), since: EpochId(4) });
    desk.yielded(1, 4);
    assert_eq!(desk.record.generation, Generation(1));
    desk.yielded(1, 4);
    assert_eq!(desk.record.generation, Generation(2));
}

/// Replica 2, in sync with an active that speaks on leases of this length.
fn leasing(length: Duration) -> (Desk, Lease) {
    let mut desk = Desk::listed();
    let lease = Lease::new(length, Duration::from_secs(1)).unwrap();
    desk.change(1, Change::SetMode { mode: Mode::Async(lease) });
    desk.follow(250);
    desk.actions.clear();
    (desk, lease)
}

#[test]
fn a_lease_is_outwaited_before_a_takeover() {
    let (mut desk, lease) = leasing(MS * 300);
    desk.silence(300);
    assert!(desk.swaps().is_empty());
    let left = lease.outwaited() - MS * 300;
    desk.silence(u32::try_from(left.as_millis()).unwrap() + 1);
    assert_eq!(desk.promoted(), Some((EpochId(4), Generation(2))));
}

#[test]
fn a_short_lease_costs_a_takeover_nothing_beyond_the_silence() {
    let (mut desk, lease) = leasing(Lease::DEFAULT.length());
    desk.silence(62);
    assert!(lease.outwaited() < MS * 62);
    assert!(desk.promoted().is_some());
}

#[test]
fn the_end_of_a_lease_is_not_slept_through() {
    let (mut desk, lease) = leasing(MS * 303);
    let heard = desk.now;
    desk.silence(305);
    let mut due = desk.replica.next_tick();
    while due < heard + lease.outwaited() {
        desk.now = due;
        desk.tell(Event::Tick);
        due = desk.replica.next_tick();
    }
    assert_eq!(due, heard + lease.outwaited());
}

#[test]
fn a_suspect_gets_no_new_lease_while_its_stamps_still_arrive() {
    let (mut desk, lease) = leasing(MS * 100);
    let hangs_from = desk.now;
    let mut echoed = Vec::new();
    for _ in 0..700 {
        desk.now = desk.now + MS;
        let (generation, progress) = (Generation(1), 7);
        let (from, echo) = (member(1), Some(desk.now));
        desk.tell(Event::Heartbeat(Heartbeat {
            from,
            generation,
            sent_at: desk.now,
            echo,
            progress,
            epoch: None,
        }));
        desk.tell(Event::Tick);
        for action in desk.actions.drain(..) {
            match action {
                Action::Heartbeat(said) => echoed.push((desk.now, said.echo.unwrap())),
                Action::Promote(..) => {
                    let newest = echoed.iter().map(|(_, echo)| *echo).max().unwrap();
                    assert!(
                        desk.now >= newest + lease.outwaited(),
                        "{newest} was echoed, taken at {}",
                        desk.now
                    );
                    assert!(desk.now > hangs_from + MS * 600);
                    return;
                }
                _ => {}
            }
        }
    }
    panic!("never taken over");
}

#[test]
fn a_guest_that_has_gone_on_after_it_was_yielded_is_not_taken() {
    let (mut desk, _) = leasing(MS * 100);
    let (generation, epoch) = (Generation(1), EpochId(4));
    let late = Yield { generation, epoch, sent_at: Time(0) };
    desk.tell(Event::Yielded(late));
    assert!(desk.swaps().is_empty(), "a later stamp has been seen, and may have been echoed");
    desk.yielded(1, 4);
    assert!(desk.promoted().is_some());
}
