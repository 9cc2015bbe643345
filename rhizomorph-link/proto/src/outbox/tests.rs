use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::limits::STRIPE_MIN;
use crate::reassembly::{Reassembly, Standing};

const SIZE: u32 = 16 * 1024;
const _: () = assert!(SIZE as usize == STRIPE_MIN, "the smallest allowed, for many stripes");

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn path(number: u8) -> PathId {
    PathId::new(number).unwrap()
}

fn with_paths(count: u8) -> Outbox {
    let mut outbox = Outbox::default();
    (0..count).for_each(|number| outbox.path_up(path(number), ms(2)));
    outbox
}

fn drain(outbox: &mut Outbox) -> Vec<Assignment> {
    std::iter::from_fn(|| outbox.next(ms(0))).collect()
}

#[test]
fn control_overtakes_queued_bulk() {
    let mut outbox = with_paths(1);
    outbox.push(Priority::Bulk, SIZE, SIZE).unwrap();
    let urgent = outbox.push(Priority::Control, 10, SIZE).unwrap();
    assert_eq!(outbox.next(ms(0)).unwrap().stripe.bundle(), urgent);
}

#[test]
fn a_silent_path_gives_back_what_it_carries_and_a_live_one_takes_it() {
    let mut outbox = with_paths(1);
    outbox.push(Priority::Bulk, 3 * SIZE, SIZE).unwrap();
    assert_eq!(drain(&mut outbox).len(), 3);
    outbox.path_suspect(path(0));
    assert!(outbox.recall().is_empty(), "nobody else could carry it");
    outbox.path_up(path(1), ms(2));
    assert_eq!(outbox.recall().len(), 3);
    let again = drain(&mut outbox);
    assert!(again.iter().all(|a| a.path == path(1)));
    let order: Vec<usize> = again.iter().map(|a| a.stripe.index()).collect();
    assert_eq!(order, [0, 1, 2]);
    assert_eq!(outbox.path(path(0)).unwrap().in_flight(), 0);
}

#[test]
fn a_late_delivery_spares_the_second_sending() {
    let mut outbox = with_paths(2);
    let id = outbox.push(Priority::Bulk, SIZE, SIZE).unwrap();
    let first = outbox.next(ms(0)).unwrap();
    outbox.path_suspect(first.path);
    assert_eq!(outbox.recall(), [first]);
    outbox.delivered(first.path, &first.stripe, ms(1));
    assert_eq!(outbox.next(ms(1)), None);
    assert!(outbox.acked(id) && !outbox.acked(id));
}

#[test]
fn a_stripe_that_arrived_while_it_waited_can_be_queued_again() {
    let mut outbox = with_paths(2);
    let id = outbox.push(Priority::Bulk, SIZE, SIZE).unwrap();
    let first = outbox.next(ms(0)).unwrap();
    outbox.path_suspect(first.path);
    outbox.recall();
    outbox.delivered(first.path, &first.stripe, ms(1));
    assert_eq!(outbox.next(ms(1)), None);
    outbox.status(id, &StripeSet::empty(0), ms(2));
    assert!(outbox.next(ms(2)).is_some());
}

#[test]
fn arrived_but_unread_is_asked_about_and_sent_again() {
    let mut outbox = with_paths(1);
    let id = outbox.push(Priority::Bulk, 2 * SIZE, SIZE).unwrap();
    for assignment in drain(&mut outbox) {
        outbox.delivered(assignment.path, &assignment.stripe, ms(10));
    }
    assert!(outbox.overdue(ms(59), 9).is_empty());
    assert_eq!(outbox.overdue(ms(60), 9), [id]);
    assert!(outbox.overdue(ms(60), 9).is_empty(), "asked, now wait again");
    let mut have = StripeSet::empty(2);
    have.insert(0);
    outbox.status(id, &have, ms(70));
    let again = outbox.next(ms(70)).unwrap();
    assert_eq!(again.stripe.index(), 1);
    assert!(outbox.overdue(ms(10_000), 9).is_empty(), "not arrived: nothing to ask");
}

#[test]
fn a_nonsense_status_changes_nothing() {
    let mut outbox = with_paths(1);
    let id = outbox.push(Priority::Bulk, SIZE, SIZE).unwrap();
    let sent = outbox.next(ms(0)).unwrap();
    outbox.delivered(path(0), &sent.stripe, ms(0));
    outbox.status(id, &StripeSet::empty(7), ms(0));
    outbox.status(BundleId(99), &StripeSet::empty(0), ms(0));
    assert_eq!(outbox.next(ms(0)), None);
}

#[test]
fn the_span_is_kept() {
    let mut outbox = Outbox::default();
    (0..BUNDLE_SPAN).for_each(|_| {
        outbox.push(Priority::Bulk, 0, SIZE).unwrap();
    });
    assert!(!outbox.may_push());
    outbox.acked(BundleId(0));
    assert!(outbox.may_push());
}

/// What may befall a link, as a script for the property below.
#[derive(Clone, Debug)]
enum Event {
    Push(bool, u32),
    Send,
    Arrive(prop::sample::Index, bool),
    Silent(u8),
    Heard(u8),
    Down(u8),
    Up(u8),
    Settle,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (any::<bool>(), 0u32..150_000).prop_map(|(control, len)| Event::Push(control, len)),
        4 => Just(Event::Send),
        4 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, read)| Event::Arrive(at, read)),
        1 => (0u8..3).prop_map(Event::Silent),
        1 => (0u8..3).prop_map(Event::Heard),
        1 => (0u8..3).prop_map(Event::Down),
        1 => (0u8..3).prop_map(Event::Up),
        1 => Just(Event::Settle),
    ]
}

/// Both ends and the wire between them.
#[derive(Default)]
struct World {
    outbox: Outbox,
    inbox: Reassembly,
    wire: Vec<Assignment>,
    pushed: BTreeSet<BundleId>,
    received: BTreeSet<BundleId>,
    now: Duration,
}

impl World {
    fn step(&mut self, event: &Event) {
        self.now += ms(7);
        match event {
            Event::Push(control, len) => {
                let priority = if *control { Priority::Control } else { Priority::Bulk };
                self.pushed.insert(self.outbox.push(priority, *len, SIZE).unwrap());
            }
            Event::Send => self.wire.extend(self.outbox.next(self.now)),
            Event::Arrive(at, read) if !self.wire.is_empty() => {
                let assignment = self.wire.swap_remove(at.index(self.wire.len()));
                self.arrive(&assignment, *read);
            }
            Event::Arrive(..) => {}
            Event::Silent(number) => {
                self.outbox.path_suspect(path(*number));
                let recalled = self.outbox.recall();
                // Half of what is recalled is on the wire already and arrives later all the same.
                self.wire.retain(|a| !recalled.contains(a) || a.stripe.index() % 2 == 0);
            }
            Event::Heard(number) => self.outbox.path_heard(path(*number)),
            Event::Down(number) => {
                self.outbox.path_down(path(*number));
                self.wire.retain(|a| a.path != path(*number));
            }
            Event::Up(number) => {
                self.outbox.path_up(path(*number), ms(2));
                self.wire.retain(|a| a.path != path(*number));
            }
            Event::Settle => self.settle(),
        }
    }

    /// The transport's ack reaches the sender; `read` says whether the receiver read the bytes before its
    /// connection died.
    fn arrive(&mut self, assignment: &Assignment, read: bool) {
        self.outbox.delivered(assignment.path, &assignment.stripe, self.now);
        if read {
            let bytes = Bytes::from(vec![0; assignment.stripe.len()]);
            if let Some(whole) = self.inbox.insert(&assignment.stripe, bytes).unwrap() {
                assert!(self.received.insert(whole.id), "{} twice", whole.id);
                self.inbox.take(whole.id);
            }
        }
    }

    fn settle(&mut self) {
        self.now += QUERY_MAX;
        for id in self.outbox.overdue(self.now, 64) {
            match self.inbox.standing(id) {
                Standing::Taken => {
                    self.outbox.acked(id);
                }
                Standing::Waiting(have) => self.outbox.status(id, &have, self.now),
            }
        }
    }

    /// The network heals; everything must come through.
    fn heal(&mut self) {
        (0..3).for_each(|number| self.step(&Event::Up(number)));
        for _ in 0..200_000 {
            if self.outbox.unacked() == 0 {
                return;
            }
            match self.outbox.next(self.now) {
                Some(assignment) => self.wire.push(assignment),
                None => match self.wire.pop() {
                    Some(assignment) => self.arrive(&assignment, true),
                    None => self.settle(),
                },
            }
        }
        panic!("no progress: {:?}", self.outbox);
    }
}

proptest! {
    /// Loss with retry, duplication, silence, death and return of paths in any order: after healing, every bundle
    /// was received exactly once, and no load is left behind on any path.
    #[test]
    fn every_bundle_arrives_exactly_once(events in prop::collection::vec(event(), 0..200)) {
        let mut world = World::default();
        (0..3).for_each(|number| world.step(&Event::Up(number)));
        events.iter().for_each(|event| world.step(event));
        world.heal();
        prop_assert_eq!(&world.received, &world.pushed);
        for number in 0..3 {
            prop_assert_eq!(world.outbox.path(path(number)).unwrap().in_flight(), 0);
        }
    }
}
