//! The active side's rules, one test each. They read as the protocol's documentation.

use super::*;
use crate::mode::Lease;
use crate::record::tests::{member, swap};
use crate::record::{Refusal, Verdict, decide};

const MS: Duration = Duration::from_millis(1);
const ASYNC: Mode = Mode::Async(Lease::DEFAULT);

/// A primary on a desk: it hears what the test says and an arbiter that answers at once, late or never.
struct Desk {
    primary: Primary,
    record: Record,
    now: Time,
    actions: Vec<Action>,
    arbiter_answers: bool,
    /// No epoch so far has all of a replica's disks.
    disks_take_long: bool,
}

fn first_record(policy: LossPolicy) -> Record {
    match decide(None, &swap(member(1), 0, 1, Change::Create { policy })) {
        Verdict::Apply(record) => record,
        other => panic!("{other:?}"),
    }
}

impl Desk {
    fn new(policy: LossPolicy) -> Self {
        let record = first_record(policy);
        // Epochs end when a test says so, not by the clock.
        let cfg = PrimaryConfig { epoch_max: MS, epoch_min: MS, ..PrimaryConfig::default() };
        let now = Time::from_ms(1_000);
        let primary = Primary::new(cfg, member(1), record.clone(), EpochId(0), 1, now);
        let mut desk =
            Self { primary, record, now, actions: Vec::new(), arbiter_answers: true, disks_take_long: false };
        desk.tell(Event::Tick);
        desk
    }

    fn tell(&mut self, event: Event) {
        let mut out = Vec::new();
        self.primary.handle(self.now, event, &mut out);
        self.actions.extend(out.iter().cloned());
        for action in out {
            match action {
                Action::Arbiter(request) if self.arbiter_answers => self.answer(&request),
                _ => {}
            }
        }
    }

    /// The arbiter decides and its answer arrives.
    fn answer(&mut self, request: &Request) {
        let reply = self.decide(request);
        self.tell(Event::Arbiter(reply));
    }

    fn decide(&mut self, request: &Request) -> Reply {
        let Request::Swap(swap) = request else { return Reply::Record(Some(self.record.clone())) };
        match decide(Some(&self.record), swap) {
            Verdict::Apply(record) => {
                self.record = record.clone();
                Reply::Applied { op: swap.op, record }
            }
            Verdict::Already => Reply::Applied { op: swap.op, record: self.record.clone() },
            Verdict::Refuse(refusal) => {
                Reply::Refused { op: swap.op, refusal, record: Some(self.record.clone()) }
            }
        }
    }

    fn heartbeat(&mut self, from: u8, epoch: Option<u64>, echo: Option<Time>) {
        self.tell(Event::Heartbeat(Heartbeat {
            from: member(from),
            generation: self.primary.record.generation,
            sent_at: self.now,
            echo,
            progress: self.now.0,
            epoch: epoch.map(EpochId),
        }));
    }

    /// A replica acknowledges with word as fresh as it gets.
    fn ack(&mut self, from: u8, epoch: u64) {
        self.heartbeat(from, Some(epoch), Some(self.now));
    }

    fn join(&mut self, who: u8) {
        self.tell(Event::Joined { member: member(who), staged: None });
    }

    /// Lets time pass in ticks; `hears` keeps sending heartbeats without acknowledging anything new.
    fn pass(&mut self, ms: u32, hears: &[u8]) {
        for _ in 0..ms {
            self.now = self.now + MS;
            for who in hears {
                let acked =
                    self.primary.peers.iter().find(|p| p.member == member(*who)).and_then(|p| p.acked);
                self.heartbeat(*who, acked.map(|e| e.0), Some(self.now));
            }
            self.tell(Event::Tick);
        }
    }

    /// The ordered cut happens.
    fn seal(&mut self) -> u64 {
        self.now = self.now + MS;
        self.tell(Event::Tick);
        assert!(self.primary.cutting, "no cut was ordered");
        let epoch = self.primary.open;
        self.tell(Event::Sealed(epoch));
        let unfilled = |p: &&Peer| p.filled.is_none() && !self.disks_take_long;
        let unfilled: Vec<Member> = self.primary.peers.iter().filter(unfilled).map(|p| p.member).collect();
        unfilled.into_iter().for_each(|member| self.tell(Event::Filled(member, epoch)));
        epoch.0
    }

    fn yields(&self) -> Vec<Yield> {
        let yields = self.actions.iter().filter_map(|a| match a {
            Action::Yield(to, said) if *to == member(2) => Some(*said),
            _ => None,
        });
        yields.collect()
    }

    /// Until when output may leave uncommitted, as last said; none in a gate that is not leased.
    fn lease(&self) -> Option<Time> {
        let mut said = self.actions.iter().filter_map(|a| match a {
            Action::Lease(until) => Some(*until),
            _ => None,
        });
        said.next_back().filter(|_| self.primary.gate == GateMode::Leased)
    }

    /// As [`Desk::protected`], in `async`.
    fn leased() -> (Self, u64) {
        let (mut desk, newest) = Self::protected(LossPolicy::Degrade);
        desk.tell(Event::SetMode(ASYNC));
        desk.pass(1, &[2]);
        assert_eq!(desk.record.mode, ASYNC);
        for _ in 0..2 {
            let next = desk.seal();
            desk.ack(2, next);
        }
        (desk, newest + 2)
    }

    /// Replica 2 joined, seeded, acknowledged and listed. Returns the newest epoch sealed.
    fn protected(policy: LossPolicy) -> (Self, u64) {
        let mut desk = Self::new(policy);
        desk.join(2);
        let seed = desk.seal();
        desk.ack(2, seed);
        let next = desk.seal();
        desk.ack(2, next);
        assert_eq!(desk.primary.protection(), Protection::Protected(1));
        assert!(desk.record.lists(member(2)));
        desk.actions.clear();
        (desk, next)
    }

    fn released(&self) -> Vec<u64> {
        let release = |a: &Action| if let Action::Release(e) = a { Some(e.0) } else { None };
        self.actions.iter().filter_map(release).collect()
    }

    fn did(&self, wanted: &Action) -> bool {
        self.actions.contains(wanted)
    }

    fn swaps(&self) -> Vec<&Swap> {
        let swap = |a| if let &Action::Arbiter(Request::Swap(ref s)) = a { Some(s) } else { None };
        self.actions.iter().filter_map(swap).collect()
    }

    fn standing(&self, who: u8) -> Option<Standing> {
        self.primary.peers.iter().find(|p| p.member == member(who)).map(|p| p.standing)
    }
}

#[test]
fn an_epoch_is_released_when_every_replica_in_sync_has_it() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    let epoch = desk.seal();
    assert_eq!(desk.released(), []);
    desk.ack(2, epoch);
    assert_eq!(desk.released(), [epoch]);
}

#[test]
fn two_replicas_must_both_have_it() {
    let (mut desk, newest) = Desk::protected(LossPolicy::Degrade);
    desk.join(3);
    let seed = desk.seal();
    desk.ack(2, seed);
    desk.ack(3, seed);
    assert_eq!(desk.primary.protection(), Protection::Protected(2));
    desk.actions.clear();
    let epoch = desk.seal();
    assert!(epoch > newest);
    desk.ack(2, epoch);
    assert_eq!(desk.released(), []);
    desk.ack(3, epoch);
    assert_eq!(desk.released(), [epoch]);
}

#[test]
fn a_joiner_is_listed_only_when_it_holds_what_has_left() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    let seed = desk.seal();
    // The gate is open, so output of the next epoch is leaving while the seed is acknowledged.
    desk.ack(2, seed);
    assert!(desk.did(&Action::Gate(GateMode::Hold)));
    assert_eq!(desk.standing(2), Some(Standing::Joining { need: EpochId(seed + 1) }));
    assert!(desk.swaps().is_empty());
    let next = desk.seal();
    desk.ack(2, next);
    assert_eq!(desk.swaps().len(), 1);
    assert_eq!(desk.standing(2), Some(Standing::InSync));
}

/// Found by the simulator: the second joiner was listed without the epoch in which the gate had closed.
#[test]
fn a_second_joiner_must_hold_what_left_before_the_gate_closed() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    desk.join(3);
    let seed = desk.seal();
    desk.ack(2, seed);
    assert!(desk.did(&Action::Gate(GateMode::Hold)));
    desk.ack(3, seed);
    assert_eq!(desk.standing(3), Some(Standing::Joining { need: EpochId(seed + 1) }));
    assert!(desk.swaps().is_empty());
}

#[test]
fn a_seeding_replica_that_falls_silent_is_dropped_and_the_gate_stays_open() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    desk.seal();
    desk.pass(400, &[]);
    assert!(desk.did(&Action::Drop(member(2))));
    assert_eq!(desk.primary.protection(), Protection::NoReplica);
    assert!(!desk.did(&Action::Gate(GateMode::Hold)));
}

#[test]
fn a_silent_replica_holds_output_until_the_record_has_let_it_go() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.arbiter_answers = false;
    desk.seal();
    desk.pass(400, &[]);
    assert_eq!(desk.standing(2), Some(Standing::Leaving));
    assert_eq!(desk.released(), []);
    let unlist = Request::Swap((*desk.swaps().last().unwrap()).clone());
    desk.answer(&unlist);
    assert!(desk.did(&Action::Drop(member(2))));
    assert!(desk.did(&Action::Gate(GateMode::Open)));
    assert_eq!(desk.released().last(), Some(&desk.primary.open.0));
}

#[test]
fn a_replica_that_is_heard_again_before_anything_was_asked_stays() {
    let (mut desk, _) = Desk::protected(LossPolicy::Halt);
    desk.pass(320, &[]);
    assert_eq!(desk.standing(2), Some(Standing::Lost));
    desk.pass(2, &[2]);
    assert_eq!(desk.standing(2), Some(Standing::InSync));
}

#[test]
fn losing_the_race_against_a_takeover_stops_the_guest() {
    let (mut desk, newest) = Desk::protected(LossPolicy::Degrade);
    let takeover = swap(member(2), desk.record.version, 1, Change::TakeOver { epoch: EpochId(newest) });
    desk.decide(&Request::Swap(takeover));
    desk.pass(400, &[]);
    let deposed = StopReason::Deposed { generation: Generation(2), by: member(2) };
    assert!(desk.did(&Action::Stop(deposed)));
    assert_eq!(desk.released(), []);
    desk.actions.clear();
    desk.ack(2, newest + 1);
    assert!(desk.actions.is_empty(), "a stopped primary does nothing");
}

#[test]
fn a_lost_reply_is_asked_for_again_under_the_same_operation() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.arbiter_answers = false;
    desk.pass(620, &[]);
    let ops: Vec<_> = desk.swaps().iter().map(|s| s.op).collect();
    assert!(ops.len() > 2, "{ops:?}");
    assert!(ops.windows(2).all(|w| w[0] == w[1]), "{ops:?}");
    // It was applied, and a mere reading of the record settles it.
    let unlist = Request::Swap(desk.swaps()[0].clone());
    desk.decide(&unlist);
    desk.answer(&Request::Read);
    assert!(desk.did(&Action::Gate(GateMode::Open)));
}

#[test]
fn stale_word_releases_nothing() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    let epoch = desk.seal();
    let said = desk.now;
    // Stopped, and continued with the acknowledgement in its socket.
    desk.now = desk.now + Duration::from_millis(90);
    desk.heartbeat(2, Some(epoch), Some(said));
    assert_eq!(desk.released(), []);
    desk.ack(2, epoch);
    assert_eq!(desk.released(), [epoch]);
}

/// Found by the simulator: a first echo that had waited out a stop set the limit of freshness to the stop's length.
/// Found by the simulator: the cuts waited for epochs that nobody had sent it, and it was never listed.
#[test]
fn a_replica_that_was_spared_epochs_while_another_set_the_pace_is_seeded_when_that_one_goes() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.disks_take_long = true;
    desk.join(3);
    let seed = desk.seal();
    desk.ack(2, seed);
    for _ in 0..4 {
        let epoch = desk.seal();
        desk.tell(Event::Spared(member(3), EpochId(epoch)));
        desk.ack(2, epoch);
    }
    desk.tell(Event::Dismiss(member(2)));
    assert_eq!((desk.standing(2), desk.standing(3)), (None, Some(Standing::Seeding)));
    desk.ack(3, seed);
    desk.seal();
}

#[test]
fn a_first_echo_measured_across_a_stop_is_not_a_round_trip() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    let seed = desk.seal();
    let said = desk.now;
    desk.heartbeat(2, Some(seed), None);
    let next = desk.seal();
    desk.now = desk.now + Duration::from_millis(600);
    desk.heartbeat(2, Some(next), Some(said));
    assert_eq!(desk.standing(2), Some(Standing::InSync));
    assert_eq!(desk.released(), []);
}

#[test]
fn on_a_long_path_word_is_as_fresh_as_the_path_allows() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    let (seed, way) = (desk.primary.open.prev().0, Duration::from_millis(80));
    desk.primary.peers[0].round_trip = RoundTrip::default();
    desk.pass(100, &[]);
    for _ in 0..RoundTrip::STAMPS_MIN {
        desk.pass(1, &[]);
        desk.heartbeat(2, Some(seed), Some(Time(desk.now.0 - 80_000_000)));
    }
    assert_eq!(desk.primary.peers[0].round_trip.known(), way);
    desk.primary.cutting = false;
    let epoch = desk.seal();
    let said = desk.now;
    desk.now = desk.now + Duration::from_millis(90);
    desk.heartbeat(2, Some(epoch), Some(said));
    assert_eq!(desk.released().last(), Some(&epoch));
}

/// Found by the simulator: it had been connected before a long cut, and the first thing it sent back was a stamp from then.
#[test]
fn a_stamp_from_before_a_replica_joined_is_not_a_round_trip() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    let before = desk.now;
    desk.now = desk.now + Duration::from_millis(700);
    desk.join(2);
    let seed = desk.seal();
    desk.heartbeat(2, Some(seed), Some(before));
    let next = desk.seal();
    desk.heartbeat(2, Some(next), Some(before));
    assert_eq!(desk.standing(2), Some(Standing::InSync));
    assert_eq!(desk.released(), []);
    desk.ack(2, next);
    assert_eq!(desk.released(), [next]);
}

/// The same of a replica that was slow to answer the first of them.
#[test]
fn a_single_slow_stamp_is_not_a_round_trip() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    let mut peer = desk.primary.peers[0].round_trip;
    peer.stamps = 0;
    desk.primary.peers[0].round_trip = peer;
    let (epoch, said) = (desk.seal(), desk.now);
    desk.now = desk.now + Duration::from_millis(200);
    desk.heartbeat(2, Some(epoch), Some(said));
    assert_eq!(desk.released(), []);
}

#[test]
fn a_rumour_of_a_newer_generation_holds_output_until_the_record_is_read() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.arbiter_answers = false;
    let epoch = desk.seal();
    desk.tell(Event::Deposed(Generation(2)));
    desk.ack(2, epoch);
    assert_eq!(desk.released(), []);
    desk.answer(&Request::Read);
    assert_eq!(desk.released(), [epoch]);
}

#[test]
fn a_stale_process_is_told_that_it_is_deposed() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.primary.record.generation = Generation(2);
    let stale = Heartbeat {
        from: member(9),
        generation: Generation(1),
        sent_at: Time(0),
        echo: None,
        progress: 1,
        epoch: None,
    };
    desk.tell(Event::Heartbeat(stale));
    assert!(desk.did(&Action::TellDeposed(member(9), Generation(2), EpochId(0))));
}

#[test]
fn at_most_so_many_epochs_are_under_way() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    let (first, second) = (desk.seal(), desk.seal());
    desk.pass(30, &[2]);
    assert_eq!(desk.primary.open.0, second + 1);
    assert!(!desk.primary.cutting);
    desk.ack(2, first);
    assert!(desk.primary.cutting);
}

/// Found by the simulator: the sealed epochs came to nothing, and the cut that could have carried their pages waited for
/// their acknowledgement.
#[test]
fn after_a_reconnect_the_next_cut_does_not_wait_for_aborted_epochs() {
    let (mut desk, kept) = Desk::protected(LossPolicy::Degrade);
    desk.seal();
    desk.seal();
    desk.pass(30, &[2]);
    assert!(!desk.primary.cutting);
    desk.tell(Event::Joined { member: member(2), staged: Some(EpochId(kept)) });
    assert!(desk.did(&Action::Resend(member(2), EpochId(kept))));
    let carrier = desk.seal();
    desk.ack(2, carrier);
    assert_eq!(desk.released(), [carrier]);
}

/// Found by the simulator: a replica spared many epochs while it seeded stopped the guest's output when it joined.
#[test]
fn a_joiner_that_was_spared_epochs_gets_them_with_the_next_cut() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.join(3);
    let seed = desk.seal();
    desk.ack(2, seed);
    for _ in 0..10 {
        let epoch = desk.seal();
        desk.ack(2, epoch);
    }
    desk.ack(3, seed);
    let carrier = desk.seal();
    assert_eq!(carrier, seed + 11);
}

/// Found by the simulator: cuts went on with another replica while one was lost, and stopped when it was heard again.
#[test]
fn a_replica_heard_again_gets_what_it_missed_with_the_next_cut() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.join(3);
    let seed = desk.seal();
    desk.ack(2, seed);
    desk.ack(3, seed);
    desk.arbiter_answers = false;
    // The one swap under way keeps the lost replica from being proposed for removal.
    desk.join(4);
    let fourth = desk.seal();
    [2, 3, 4].into_iter().for_each(|who| desk.ack(who, fourth));
    for _ in 0..40 {
        desk.pass(10, &[2, 4]);
        if desk.primary.cutting {
            let epoch = desk.seal();
            desk.ack(2, epoch);
            desk.ack(4, epoch);
        }
    }
    assert_eq!(desk.standing(3), Some(Standing::Lost));
    desk.pass(1, &[2, 3, 4]);
    assert_eq!(desk.standing(3), Some(Standing::InSync));
    let carrier = desk.seal();
    [2, 3, 4].into_iter().for_each(|who| desk.ack(who, carrier));
    assert_eq!(desk.released().last(), Some(&carrier));
}

/// Found by the simulator: a seed cannot follow epochs that the replica already holds, so it never became whole.
#[test]
fn a_dropped_replica_that_kept_epochs_is_turned_away() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.tell(Event::Joined { member: member(2), staged: Some(EpochId(7)) });
    assert!(desk.did(&Action::Drop(member(2))));
    assert_eq!(desk.standing(2), None);
}

#[test]
fn a_second_handshake_while_seeding_begins_again() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    desk.seal();
    desk.actions.clear();
    desk.join(2);
    assert!(desk.did(&Action::Seed(member(2))));
    assert_eq!(desk.primary.peers[0].first, desk.primary.open);
}

#[test]
fn under_halt_nothing_runs_before_a_replica_is_in_sync() {
    let mut desk = Desk::new(LossPolicy::Halt);
    assert!(desk.did(&Action::PauseGuest) && desk.did(&Action::Gate(GateMode::Hold)));
    assert_eq!(desk.primary.protection(), Protection::Halted);
    desk.join(2);
    let seed = desk.seal();
    assert!(!desk.did(&Action::RunGuest));
    // Nothing has left yet, so the seed is all it must hold.
    desk.ack(2, seed);
    assert!(desk.did(&Action::RunGuest));
    assert!(!desk.did(&Action::Gate(GateMode::Open)));
}

#[test]
fn under_halt_the_loss_of_the_only_replica_stops_the_guest_and_keeps_the_record() {
    let (mut desk, _) = Desk::protected(LossPolicy::Halt);
    desk.pass(400, &[]);
    assert!(desk.did(&Action::PauseGuest));
    assert!(desk.record.lists(member(2)), "it may still take over");
    assert!(desk.swaps().is_empty());
}

#[test]
fn under_halt_a_new_replica_replaces_the_lost_one() {
    let (mut desk, newest) = Desk::protected(LossPolicy::Halt);
    desk.pass(400, &[]);
    desk.join(3);
    for _ in 0..2 {
        let epoch = desk.seal();
        desk.ack(3, epoch);
    }
    assert!(desk.record.lists(member(3)) && !desk.record.lists(member(2)));
    assert!(desk.did(&Action::RunGuest));
    assert!(desk.primary.released.0 > newest);
}

#[test]
fn a_refused_listing_is_tried_again_on_the_new_record() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    let seed = desk.seal();
    desk.ack(2, seed);
    let next = desk.seal();
    desk.arbiter_answers = false;
    desk.ack(2, next);
    let op = desk.swaps()[0].op;
    desk.record.version += 1;
    let record = Some(desk.record.clone());
    desk.tell(Event::Arbiter(Reply::Refused { op, refusal: Refusal::Changed, record }));
    let epoch = desk.primary.open.0;
    assert_eq!(desk.standing(2), Some(Standing::Joining { need: EpochId(epoch) }));
    desk.seal();
    desk.ack(2, epoch);
    let again = desk.swaps()[1];
    assert_eq!((again.expected_version, again.op.count), (desk.record.version, op.count + 1));
}

#[test]
fn retiring_takes_everybody_off_the_record_first() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.tell(Event::Retire);
    assert!(desk.record.in_sync.is_empty());
    assert!(desk.did(&Action::Retired));
}

#[test]
fn a_dismissed_replica_leaves_the_record_before_output_goes_without_it() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.arbiter_answers = false;
    let epoch = desk.seal();
    desk.tell(Event::Dismiss(member(2)));
    assert_eq!(desk.standing(2), Some(Standing::Leaving));
    desk.pass(5, &[2]);
    assert_eq!(desk.released(), []);
    let unlist = Request::Swap((*desk.swaps().last().unwrap()).clone());
    desk.answer(&unlist);
    assert!(desk.record.in_sync.is_empty() && desk.did(&Action::Drop(member(2))));
    assert!(desk.did(&Action::Gate(GateMode::Open)) && desk.released().last() >= Some(&epoch));
    assert_eq!(desk.primary.protection(), Protection::NoReplica);
}

#[test]
fn a_replica_dismissed_before_it_is_listed_is_just_dropped() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    desk.seal();
    desk.tell(Event::Dismiss(member(2)));
    assert!(desk.did(&Action::Drop(member(2))) && desk.swaps().is_empty());
    assert_eq!(desk.standing(2), None);
}

#[test]
fn a_replica_dismissed_while_it_is_being_listed_is_unlisted_next() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.join(2);
    let seed = desk.seal();
    desk.ack(2, seed);
    let next = desk.seal();
    desk.arbiter_answers = false;
    desk.ack(2, next);
    assert_eq!(desk.standing(2), Some(Standing::Listing));
    desk.tell(Event::Dismiss(member(2)));
    assert_eq!(desk.standing(2), Some(Standing::Listing), "the record may list it");
    desk.arbiter_answers = true;
    let list = Request::Swap(desk.swaps()[0].clone());
    desk.answer(&list);
    assert!(desk.record.in_sync.is_empty());
    assert_eq!(desk.standing(2), None);
}

#[test]
fn of_two_replicas_the_dismissed_one_alone_goes() {
    let (mut desk, _) = Desk::protected(LossPolicy::Halt);
    desk.join(3);
    for _ in 0..2 {
        let epoch = desk.seal();
        [2, 3].into_iter().for_each(|who| desk.ack(who, epoch));
    }
    desk.tell(Event::Dismiss(member(2)));
    assert_eq!(desk.primary.protection(), Protection::Protected(1));
    assert!(desk.record.lists(member(3)) && !desk.record.lists(member(2)));
    let epoch = desk.seal();
    desk.ack(3, epoch);
    assert_eq!(desk.released().last(), Some(&epoch));
    assert!(!desk.did(&Action::PauseGuest));
}

#[test]
fn under_halt_nothing_leaves_on_the_word_of_a_replica_that_may_be_unlisted_or_is_not_listed_yet() {
    let (mut desk, _) = Desk::protected(LossPolicy::Halt);
    desk.arbiter_answers = false;
    let epoch = desk.seal();
    desk.tell(Event::Dismiss(member(2)));
    desk.ack(2, epoch);
    assert_eq!((desk.standing(2), desk.released()), (Some(Standing::Leaving), vec![]));
    let unlist = Request::Swap((*desk.swaps().last().unwrap()).clone());
    desk.answer(&unlist);
    assert!(desk.record.in_sync.is_empty() && desk.did(&Action::PauseGuest));

    desk.join(3);
    let seed = desk.seal();
    desk.ack(3, seed);
    assert_eq!((desk.standing(3), desk.released()), (Some(Standing::Listing), vec![]));
    let list = Request::Swap((*desk.swaps().last().unwrap()).clone());
    desk.answer(&list);
    assert_eq!(desk.released(), [seed]);
    assert!(desk.did(&Action::RunGuest));
}

#[test]
fn while_the_arbiter_is_away_output_goes_on_with_the_word_of_a_dismissed_replica() {
    let (mut desk, newest) = Desk::protected(LossPolicy::Degrade);
    desk.arbiter_answers = false;
    desk.tell(Event::Dismiss(member(2)));
    for epoch in newest + 1..newest + 6 {
        assert_eq!(desk.seal(), epoch);
        desk.ack(2, epoch);
        assert_eq!(desk.released().last(), Some(&epoch));
    }
    assert_eq!(desk.standing(2), Some(Standing::Leaving));
    // Once it is silent, nothing is cut for it any more.
    desk.pass(400, &[]);
    assert!(!desk.did(&Action::Cut(EpochId(newest + 8))));
}

#[test]
fn waiting_output_ends_an_epoch_as_soon_as_the_last_cut_is_paid_for() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.primary.cfg =
        PrimaryConfig { epoch_max: MS * 100, epoch_min: MS, cut_share_pm: 100, ..PrimaryConfig::default() };
    desk.primary.longest = MS * 100;
    let last_cut = desk.primary.last_cut;
    let next = |desk: &Desk| desk.primary.next_cut().map(|at| at.since(last_cut));
    assert_eq!(next(&desk), Some(MS * 100), "nothing waits");
    desk.tell(Event::OutputPending(true));
    assert_eq!(next(&desk), Some(MS));
    let cut = |desk: &mut Desk, cost| {
        (0..40).for_each(|_| desk.tell(Event::CutDone(CutDone { cost, quiet: false })));
    };
    cut(&mut desk, MS * 2);
    let interval = next(&desk).expect("a cut falls due");
    assert!(interval > MS * 19 && interval <= MS * 20, "{interval:?}: a tenth of the time for cuts of 2 ms");
    cut(&mut desk, MS * 1000);
    assert_eq!(next(&desk), Some(MS * 100), "never longer than the longest epoch");
    cut(&mut desk, Duration::ZERO);
    assert_eq!(next(&desk), Some(MS));
    desk.primary.cutting = true;
    assert_eq!(next(&desk), None, "the end of a cut comes first");
}

#[test]
fn epochs_of_a_guest_that_does_nothing_grow_long_until_it_does_something() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.primary.cfg = PrimaryConfig { epoch_max: MS * 25, epoch_min: MS, ..PrimaryConfig::default() };
    let last_cut = desk.primary.last_cut;
    let next = |desk: &Desk| desk.primary.next_cut().map(|at| at.since(last_cut));
    let cut = |desk: &mut Desk, quiet| desk.tell(Event::CutDone(CutDone { cost: MS, quiet }));
    cut(&mut desk, false);
    assert_eq!(next(&desk), Some(MS * 25));
    cut(&mut desk, true);
    assert_eq!(next(&desk), Some(MS * 50));
    (0..10).for_each(|_| cut(&mut desk, true));
    assert_eq!(next(&desk), Some(MS * 2000));
    desk.tell(Event::PagesPending);
    assert_eq!(next(&desk), Some(MS * 25));
    (0..10).for_each(|_| cut(&mut desk, true));
    desk.tell(Event::OutputPending(true));
    assert!(next(&desk) < Some(MS * 25), "output does not wait for a long epoch");
}

#[test]
fn a_replica_is_not_listed_before_it_has_the_disks() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.disks_take_long = true;
    desk.join(2);
    for _ in 0..5 {
        let epoch = desk.seal();
        desk.ack(2, epoch);
        assert_eq!(desk.standing(2), Some(Standing::Seeding));
    }
    let last = desk.seal();
    desk.tell(Event::Filled(member(2), EpochId(last)));
    assert_eq!(desk.standing(2), Some(Standing::Seeding), "it does not hold the last piece yet");
    // A new connection: that piece never came whole, and is sent again in a later epoch.
    desk.tell(Event::Joined { member: member(2), staged: Some(EpochId(last - 1)) });
    let again = desk.seal();
    desk.ack(2, again);
    assert_eq!(desk.standing(2), Some(Standing::Seeding));
    desk.tell(Event::Filled(member(2), EpochId(again)));
    let next = desk.seal();
    desk.ack(2, next);
    assert_eq!(desk.standing(2), Some(Standing::InSync));
}

#[test]
fn a_guest_is_handed_over_when_all_it_said_has_left() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.tell(Event::HandOver(None));
    assert!(desk.did(&Action::PauseGuest), "the guest stands still before its last epoch ends");
    assert_eq!(desk.primary.protection(), Protection::HandingOver);
    let last = desk.seal();
    desk.pass(20, &[2]);
    assert!(desk.yields().is_empty(), "the replica does not hold it yet");
    desk.ack(2, last);
    assert_eq!(desk.released(), [last]);
    let yielded = Yield { generation: Generation(1), epoch: EpochId(last), sent_at: desk.now };
    assert_eq!(desk.yields(), [yielded]);
    assert_eq!(desk.primary.open_epoch(), EpochId(last + 1), "no epoch comes after it");
    // The replica proposes; until the record says so, it is asked again with every heartbeat.
    desk.actions.clear();
    desk.pass(20, &[2]);
    assert!(desk.yields().len() >= 2);
    let taken = swap(member(2), desk.record.version, 1, Change::TakeOver { epoch: EpochId(last) });
    let Verdict::Apply(record) = decide(Some(&desk.record), &taken) else { panic!() };
    desk.record = record;
    desk.pass(20, &[2]);
    assert!(desk.did(&Action::Stop(StopReason::HandedOver { generation: Generation(2), to: member(2) })));
}

#[test]
fn a_guest_that_is_not_taken_in_time_goes_on() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.tell(Event::HandOver(Some(member(2))));
    let last = desk.seal();
    desk.ack(2, last);
    desk.pass(1100, &[2]);
    let patience = Duration::from_secs(1);
    assert!(desk.did(&Action::NotHandedOver(NotHandedOver::TooLate { member: member(2), patience })));
    assert!(desk.did(&Action::RunGuest));
    assert_eq!(desk.primary.protection(), Protection::Protected(1));
    let next = desk.seal();
    desk.ack(2, next);
    assert_eq!(desk.released().last(), Some(&next));
}

#[test]
fn a_replica_that_falls_silent_is_not_handed_the_guest() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.tell(Event::HandOver(None));
    desk.seal();
    desk.pass(600, &[]);
    assert!(desk.did(&Action::NotHandedOver(NotHandedOver::Lost(member(2)))));
    assert!(desk.did(&Action::RunGuest));
}

#[test]
fn nobody_who_is_not_in_sync_is_handed_the_guest() {
    let mut desk = Desk::new(LossPolicy::Degrade);
    desk.tell(Event::HandOver(None));
    assert!(desk.did(&Action::NotHandedOver(NotHandedOver::NoReplica)));
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.join(3);
    desk.tell(Event::HandOver(Some(member(3))));
    assert!(desk.did(&Action::NotHandedOver(NotHandedOver::NotInSync(member(3).node))));
    desk.tell(Event::HandOver(Some(member(2))));
    desk.tell(Event::HandOver(Some(member(2))));
    assert!(desk.did(&Action::NotHandedOver(NotHandedOver::UnderWay)));
}

#[test]
fn a_cut_that_fails_during_a_handover_is_made_again() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.tell(Event::HandOver(None));
    desk.pass(1, &[2]);
    desk.tell(Event::CutFailed);
    let last = desk.seal();
    desk.ack(2, last);
    assert_eq!(desk.yields().len(), 1);
}

#[test]
fn a_pace_is_kept_once_the_record_has_it_and_by_whoever_takes_over() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.tell(Event::SetPace(Pace::CONSISTENCY));
    assert_eq!(desk.record.pace, Some(Pace::CONSISTENCY));
    assert_eq!(desk.primary.pace(), Some(Pace::CONSISTENCY));
    assert_eq!(desk.swaps().len(), 1, "it is proposed once");
    let taken = swap(member(2), desk.record.version, 1, Change::TakeOver { epoch: EpochId(9) });
    let Verdict::Apply(record) = decide(Some(&desk.record), &taken) else { panic!() };
    let next = Primary::new(PrimaryConfig::default(), member(2), record, EpochId(9), 1, desk.now);
    assert_eq!(next.pace(), Some(Pace::CONSISTENCY));
}

#[test]
fn a_pace_is_proposed_again_when_the_arbiter_was_away() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.arbiter_answers = false;
    desk.tell(Event::SetPace(Pace::PERFORMANCE));
    assert_ne!(desk.primary.pace(), Some(Pace::PERFORMANCE));
    desk.arbiter_answers = true;
    desk.pass(3000, &[2]);
    assert_eq!(desk.primary.pace(), Some(Pace::PERFORMANCE));
}

#[test]
fn in_async_output_leaves_for_as_long_as_the_echo_is_young() {
    let (mut desk, _) = Desk::leased();
    assert_eq!(desk.lease(), Some(desk.now + Lease::DEFAULT.length()));
    // The echo counts from its stamp, not from when it arrives.
    let stamp = desk.now;
    desk.pass(5, &[]);
    desk.heartbeat(2, None, Some(stamp + MS));
    assert_eq!(desk.lease(), Some(stamp + MS + Lease::DEFAULT.length()));
}

#[test]
fn every_replica_must_echo_for_a_lease() {
    let (mut desk, newest) = Desk::leased();
    desk.join(3);
    let seed = desk.seal();
    desk.ack(2, seed);
    let before = desk.now;
    desk.heartbeat(3, Some(seed), Some(before));
    desk.pass(20, &[2]);
    assert!(seed > newest);
    assert_eq!(desk.lease(), Some(before + Lease::DEFAULT.length()), "the older of the two counts");
}

#[test]
fn a_lease_ends_where_too_much_would_be_lost() {
    let (mut desk, _) = Desk::leased();
    desk.tell(Event::SetMode(Mode::Async(Lease::new(MS * 50, MS * 100).unwrap())));
    desk.pass(70, &[2]);
    for _ in 0..2 {
        let epoch = desk.seal();
        desk.ack(2, epoch);
    }
    let begun = desk.now;
    desk.pass(1, &[2]);
    let open = desk.seal();
    desk.pass(90, &[2]);
    assert!(desk.primary.exposure(desk.now).unwrap() >= MS * 90, "{open}");
    let lease = desk.lease().unwrap();
    assert!(lease <= begun + MS * 100);
    desk.ack(2, open);
    assert!(desk.lease().unwrap() > lease);
}

#[test]
fn output_waits_until_a_change_of_the_mode_is_in_the_record() {
    let (mut desk, _) = Desk::leased();
    let last = desk.lease().unwrap();
    desk.actions.clear();
    desk.tell(Event::SetMode(Mode::Sync));
    assert_eq!(desk.primary.gate, GateMode::Hold);
    assert!(
        desk.swaps().is_empty(),
        "a lease is out, and whoever takes over by the new record would not wait for it"
    );
    while desk.record.mode == ASYNC {
        desk.pass(1, &[2]);
    }
    assert!(desk.now > last + Lease::CHECK_TO_SEND);
    desk.pass(5, &[2]);
    assert_eq!((desk.primary.gate, desk.lease()), (GateMode::Hold, None));
}

#[test]
fn a_wish_that_is_taken_back_before_it_is_recorded_does_not_stay() {
    let (mut desk, _) = Desk::protected(LossPolicy::Degrade);
    desk.arbiter_answers = false;
    desk.tell(Event::SetMode(ASYNC));
    desk.tell(Event::SetMode(Mode::Sync));
    desk.arbiter_answers = true;
    desk.pass(300, &[2]);
    assert_eq!(desk.record.mode, Mode::Sync);
}

#[test]
fn in_doubt_output_waits_in_async_too() {
    let (mut desk, _) = Desk::leased();
    desk.arbiter_answers = false;
    desk.tell(Event::Deposed(Generation(2)));
    assert_eq!(desk.primary.gate, GateMode::Hold);
}

#[test]
fn after_a_handover_that_came_to_nothing_old_echoes_give_no_lease() {
    let (mut desk, _) = Desk::leased();
    desk.tell(Event::HandOver(None));
    assert_eq!(desk.primary.gate, GateMode::Hold);
    while desk.yields().is_empty() {
        let last = desk.seal();
        desk.ack(2, last);
    }
    // It is silent from here on, as one that is taking over.
    desk.arbiter_answers = false;
    desk.pass(1100, &[]);
    let given_up = desk.actions.iter().any(|a| matches!(a, Action::NotHandedOver(_)));
    assert!(given_up && desk.primary.gate == GateMode::Hold);
    desk.heartbeat(2, None, Some(desk.now - MS * 900));
    assert_eq!(desk.primary.gate, GateMode::Hold);
    desk.pass(10, &[2]);
    assert_eq!(desk.primary.gate, GateMode::Leased);
}
