//! The classes of runs. Each is a promise about what the VM must survive.

use mycelium_ram_core::mode::{Lease, Mode};
use mycelium_ram_core::record::LossPolicy;

use super::{Rift, Scenario, What, When, Who};
use crate::clock::MS;
use crate::effect::Point;
use crate::net::Quality;
use crate::rng::Rng;

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A kind of run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Class {
            $($(#[$doc])* $name,)*
        }

        impl Class {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name in tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

classes! {
    /// The active's host dies, nothing else happens.
    CleanKill = "clean-kill",
    /// The active is stopped and continued.
    StallActive = "stall-active",
    /// A replica is stopped and continued.
    StallReplica = "stall-replica",
    /// Directions are cut, once or several times.
    Partition = "partition",
    /// Paths lose, double and delay; then the active dies.
    Lossy = "lossy",
    /// The arbiter fails or does not get through while others fail.
    Arbiter = "arbiter",
    /// A replica dies and returns.
    ReplicaLoss = "replica-loss",
    /// Somebody fails while a replica joins.
    Joining = "joining",
    /// The policy forbids to run unprotected.
    Halt = "halt",
    /// Processes start again and again.
    Restarts = "restarts",
    /// A loop hangs while heartbeats go on.
    Hang = "hang",
    /// Connections break again and again, then the active dies.
    Resets = "resets",
    /// Long paths.
    Far = "far",
    /// Two replicas race.
    Race = "race",
    /// Anything at any time; nothing is promised but safety, and life if a process is left that may live.
    Chaos = "chaos",
    /// The operator gives replicas up and takes others instead, while somebody fails.
    Dismissals = "dismissals",
    /// The leader of the arbiter's group dies at the very moment of a takeover.
    LeaderLoss = "leader-loss",
    /// The operator has the guest go on elsewhere, while somebody fails or nobody does.
    HandOvers = "hand-overs",
    /// Output does not wait for its commit, while somebody fails.
    Async = "async",
}

/// The classes that came later, each with its turn of sixteen: taken out of the others' turns, so that all other seeds stay
/// the runs they were.
const LATER: [(u64, Class); 4] =
    [(3, Class::Dismissals), (7, Class::Async), (11, Class::LeaderLoss), (15, Class::HandOvers)];

const ACTIVE_POINTS: &[Point] = &[
    Point::BeforeCut,
    Point::InCut,
    Point::SealedUnsent,
    Point::PartSent,
    Point::EndSent,
    Point::BeforeRelease,
    Point::AmidRelease,
];
const REPLICA_POINTS: &[Point] = &[Point::PartStaged, Point::EpochStaged, Point::AckSent];
const TAKEOVER_POINTS: &[Point] =
    &[Point::TakeoverSent, Point::Promoted, Point::BeforeReplay, Point::Replayed];
const JOIN_POINTS: &[Point] = &[
    Point::OfferSent,
    Point::Accepted,
    Point::SeedBegun,
    Point::PartStaged,
    Point::EpochStaged,
    Point::ListSent,
];
const LEADER_POINTS: &[Point] =
    &[Point::TakeoverReceived, Point::TakeoverAppended, Point::TakeoverReplicated, Point::TakeoverAnswered];
const RIFTS: &[Rift] = &[
    Rift::Pair,
    Rift::ActiveMute,
    Rift::ActiveDeaf,
    Rift::ActiveAlone,
    Rift::ReplicaAlone,
    Rift::ActiveFromPeers,
    Rift::ActiveArbiter,
    Rift::ReplicaArbiter,
    Rift::ArbiterMute,
];

impl Class {
    /// The class of a seed: they take turns.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        if let Some((_, class)) = LATER.iter().find(|(turn, _)| *turn == seed % 16) {
            return *class;
        }
        let first = &Self::ALL[..Self::ALL.len() - LATER.len()];
        first[usize::try_from(seed % first.len() as u64).expect("a few")]
    }

    pub(super) fn fill(self, s: &mut Scenario, rng: &mut Rng) {
        match self {
            Self::CleanKill => clean_kill(s, rng),
            Self::StallActive => stall(s, rng, Who::Active, ACTIVE_POINTS),
            Self::StallReplica => stall(s, rng, Who::Replica, REPLICA_POINTS),
            Self::Partition => partition(s, rng),
            Self::Lossy => lossy(s, rng),
            Self::Arbiter => arbiter(s, rng),
            Self::ReplicaLoss => replica_loss(s, rng),
            Self::Joining => joining(s, rng),
            Self::Halt => halt(s, rng),
            Self::Restarts => restarts(s, rng),
            Self::Hang => hang(s, rng),
            Self::Resets => resets(s, rng),
            Self::Far => far(s, rng),
            Self::Race => race(s, rng),
            Self::Chaos => chaos(s, rng),
            Self::Dismissals => dismissals(s, rng),
            Self::LeaderLoss => leader_loss(s, rng),
            Self::HandOvers => hand_overs(s, rng),
            Self::Async => asynchronous(s, rng),
        }
    }
}

fn soon(rng: &mut Rng) -> u64 {
    rng.between((250, 900)) * MS
}

/// At a random time, or at a random one of these points.
fn some_time(rng: &mut Rng, points: &[Point]) -> When {
    let after = soon(rng);
    if rng.chance(250) {
        return When::At(after + rng.below(10 * MS));
    }
    When::Reached { point: rng.pick(points), nth: 1 + rng.below(4), after }
}

fn reboot(rng: &mut Rng) -> u64 {
    rng.between((40, 400)) * MS
}

fn stop_for(rng: &mut Rng) -> u64 {
    // Around the detector's floor is where decisions are close.
    if rng.chance(500) { rng.between((20, 140)) * MS } else { rng.between((140, 900)) * MS }
}

fn kill_active(s: &mut Scenario, rng: &mut Rng) {
    let crash = What::Crash(Who::Active, reboot(rng));
    s.add_protected(some_time(rng, ACTIVE_POINTS), crash);
}

fn clean_kill(s: &mut Scenario, rng: &mut Rng) {
    s.prompt = s.nodes == 2;
    s.think = (MS / 2, rng.between((1, 6)) * MS);
    // The longer a commit takes, the more is under way when the host dies.
    s.paths.delay.1 = rng.between((1, 5)) * MS;
    kill_active(s, rng);
}

fn stall(s: &mut Scenario, rng: &mut Rng, who: Who, points: &[Point]) {
    s.arbiter.delay.1 = rng.between((1, 60)) * MS;
    for _ in 0..rng.between((1, 3)) {
        let stop = What::Stall(who, stop_for(rng));
        s.add(some_time(rng, points), stop);
    }
    if rng.chance(200) {
        let stop = What::Stall(Who::Here, stop_for(rng));
        s.add(some_time(rng, TAKEOVER_POINTS), stop);
    }
}

fn partition(s: &mut Scenario, rng: &mut Rng) {
    let rift = rng.pick(RIFTS);
    if rng.chance(300) {
        let mut at = soon(rng);
        for _ in 0..rng.between((3, 8)) {
            let length = rng.between((10, 120)) * MS;
            s.add(When::At(at), What::Cut(rift, length));
            at += length + rng.between((10, 120)) * MS;
        }
        return;
    }
    let length = rng.between((30, 900)) * MS;
    s.add(some_time(rng, ACTIVE_POINTS), What::Cut(rift, length));
    if rng.chance(300) {
        let other = What::Cut(rng.pick(RIFTS), rng.between((30, 500)) * MS);
        s.add(some_time(rng, ACTIVE_POINTS), other);
    }
}

fn lossy_paths(rng: &mut Rng) -> Quality {
    Quality {
        delay: (50_000, rng.between((1, 15)) * MS),
        loss_pm: rng.below(250),
        double_pm: rng.below(200),
        spike_pm: rng.below(60),
        spike: rng.between((10, 80)) * MS,
    }
}

fn lossy(s: &mut Scenario, rng: &mut Rng) {
    s.paths = lossy_paths(rng);
    s.arbiter = Quality { spike: 30 * MS, ..lossy_paths(rng) };
    if rng.chance(600) {
        kill_active(s, rng);
    }
}

fn arbiter(s: &mut Scenario, rng: &mut Rng) {
    s.arbiter = lossy_paths(rng);
    s.arbiter.loss_pm = rng.below(500);
    for _ in 0..rng.between((1, 3)) {
        let down = What::ArbiterDown(rng.between((20, 500)) * MS);
        let points = [Point::ListSent, Point::UnlistSent, Point::TakeoverSent];
        s.add(some_time(rng, &points), down);
    }
    match rng.below(4) {
        0 => kill_active(s, rng),
        1 => {
            let stop = What::Stall(Who::Active, stop_for(rng));
            s.add(some_time(rng, ACTIVE_POINTS), stop);
        }
        2 => {
            let cut = What::Cut(rng.pick(RIFTS), rng.between((60, 600)) * MS);
            s.add(some_time(rng, ACTIVE_POINTS), cut);
        }
        _ => {
            let crash = What::Crash(Who::Replica, reboot(rng));
            s.add(some_time(rng, REPLICA_POINTS), crash);
        }
    }
}

fn replica_loss(s: &mut Scenario, rng: &mut Rng) {
    for _ in 0..rng.between((1, 2)) {
        let crash = What::Crash(Who::Replica, reboot(rng));
        s.add(some_time(rng, REPLICA_POINTS), crash);
    }
    s.costs.cut_fails_pm = rng.below(200);
    if rng.chance(300) {
        s.heal_at = 3000 * MS;
        let crash = What::Crash(Who::Active, reboot(rng));
        s.add_protected(When::At(1600 * MS + rng.below(1000 * MS)), crash);
    }
}

fn joining(s: &mut Scenario, rng: &mut Rng) {
    // A second replica that joins behind the first has windows of its own.
    s.nodes = if rng.chance(600) { 3 } else { 2 };
    s.arbiter.delay.1 = rng.between((2, 60)) * MS;
    s.think = (MS / 2, MS);
    // Slow seeds and lists make the windows wide.
    s.costs.send.1 = rng.between((60, 3000)) * 1000;
    // Between the proposal to list it and its first epoch as a member lie the narrowest windows.
    let when = if rng.chance(400) {
        When::Reached { point: Point::ListSent, nth: 1 + rng.below(s.nodes as u64 - 1), after: 0 }
    } else {
        When::Reached { point: rng.pick(JOIN_POINTS), nth: 1 + rng.below(4), after: 0 }
    };
    let what = match rng.below(5) {
        0 | 1 => What::Crash(Who::Active, reboot(rng)),
        2 => What::Crash(Who::Replica, reboot(rng)),
        3 => What::Cut(rng.pick(RIFTS), rng.between((60, 800)) * MS),
        _ => What::Stall(Who::Active, stop_for(rng)),
    };
    s.survives = !matches!(what, What::Crash(Who::Active, _));
    s.add(when, what);
}

fn halt(s: &mut Scenario, rng: &mut Rng) {
    s.policy = LossPolicy::Halt;
    match rng.below(3) {
        0 => kill_active(s, rng),
        1 => {
            let crash = What::Crash(Who::Replica, reboot(rng));
            s.add(some_time(rng, REPLICA_POINTS), crash);
        }
        _ => {
            let cut = What::Cut(rng.pick(RIFTS), rng.between((60, 900)) * MS);
            s.add(some_time(rng, ACTIVE_POINTS), cut);
        }
    }
}

fn restarts(s: &mut Scenario, rng: &mut Rng) {
    s.heal_at = 2500 * MS;
    let mut at = rng.between((100, 400)) * MS;
    for _ in 0..rng.between((4, 9)) {
        let back = rng.between((10, 80)) * MS;
        let who = if rng.chance(300) { Who::Active } else { Who::Replica };
        let crash = What::Crash(who, back);
        if who == Who::Active {
            s.survives = false;
            s.add_protected(When::At(at), crash);
        } else {
            s.add(When::At(at), crash);
        }
        at += rng.between((20, 400)) * MS;
    }
}

fn hang(s: &mut Scenario, rng: &mut Rng) {
    s.heal_at = 2500 * MS;
    let length = if rng.chance(500) { None } else { Some(rng.between((100, 1200)) * MS) };
    let (who, points) =
        if rng.chance(600) { (Who::Active, ACTIVE_POINTS) } else { (Who::Replica, REPLICA_POINTS) };
    s.add_protected(some_time(rng, points), What::Hang(who, length));
}

fn resets(s: &mut Scenario, rng: &mut Rng) {
    for _ in 0..rng.between((1, 5)) {
        s.add(some_time(rng, ACTIVE_POINTS), What::Reset);
    }
    if rng.chance(600) {
        // Soon after a break, before new writes cover up what it lost.
        let (last, reaction) = (rng.between((950, 1200)) * MS, rng.between((40, 250)) * MS);
        let point = rng.pick(&[Point::PartSent, Point::EndSent, Point::SealedUnsent]);
        s.add(When::Reached { point, nth: 1 + rng.below(4), after: last }, What::Reset);
        s.add_protected(When::At(last + reaction), What::Crash(Who::Active, reboot(rng)));
    }
}

fn far(s: &mut Scenario, rng: &mut Rng) {
    let base = rng.between((5, 60)) * MS;
    s.paths.delay = (base, base + rng.below(base / 2));
    s.paths.loss_pm = rng.below(30);
    s.arbiter.delay = (base / 2, base);
    s.heal_at = 3000 * MS;
    let when = When::At(rng.between((1200, 2000)) * MS);
    match rng.below(4) {
        0 | 1 => s.add_protected(when, What::Crash(Who::Active, reboot(rng))),
        2 => s.add(when, What::Stall(Who::Active, stop_for(rng))),
        _ => s.add(when, What::Cut(rng.pick(RIFTS), rng.between((60, 900)) * MS)),
    }
}

fn race(s: &mut Scenario, rng: &mut Rng) {
    s.nodes = 3;
    match rng.below(3) {
        0 | 1 => kill_active(s, rng),
        _ => {
            let cut = What::Cut(Rift::ActiveFromPeers, rng.between((100, 700)) * MS);
            s.add(some_time(rng, ACTIVE_POINTS), cut);
        }
    }
}

fn chaos(s: &mut Scenario, rng: &mut Rng) {
    s.survives = false;
    s.heal_at = 2500 * MS;
    s.paths = if rng.chance(500) { lossy_paths(rng) } else { s.paths };
    s.arbiter = if rng.chance(500) { lossy_paths(rng) } else { s.arbiter };
    s.policy = if rng.chance(200) { LossPolicy::Halt } else { LossPolicy::Degrade };
    s.costs.cut_fails_pm = rng.below(100);
    let points = [ACTIVE_POINTS, REPLICA_POINTS, TAKEOVER_POINTS, JOIN_POINTS].concat();
    for _ in 0..rng.between((2, 8)) {
        let when = some_time(rng, &points);
        let who = rng.pick(&[Who::Active, Who::Replica, Who::Here]);
        let what = match rng.below(8) {
            0 | 1 => What::Crash(who, reboot(rng)),
            2 | 3 => What::Stall(who, stop_for(rng)),
            4 | 5 => What::Cut(rng.pick(RIFTS), rng.between((20, 900)) * MS),
            6 => What::Reset,
            _ => What::ArbiterDown(rng.between((20, 600)) * MS),
        };
        if matches!(what, What::Crash(..)) && rng.chance(700) {
            s.add_protected(when, what);
        } else {
            s.add(when, what);
        }
    }
}

fn dismissals(s: &mut Scenario, rng: &mut Rng) {
    s.nodes = if rng.chance(600) { 3 } else { 2 };
    s.heal_at = 3000 * MS;
    s.policy = if rng.chance(200) { LossPolicy::Halt } else { LossPolicy::Degrade };
    s.arbiter.delay.1 = rng.between((2, 60)) * MS;
    if rng.chance(300) {
        s.paths.delay.1 = rng.between((5, 40)) * MS;
    }
    // Slow seeds and lists are long enough to be given up in.
    s.costs.send.1 = rng.between((60, 2000)) * 1000;
    if s.nodes == 3 && rng.chance(500) {
        s.unwanted.push(2);
    }
    let points = [ACTIVE_POINTS, REPLICA_POINTS, JOIN_POINTS, &[Point::UnlistSent]].concat();
    for n in 0..rng.between((1, 4)) {
        let when = if rng.chance(500) {
            let after = n * rng.between((50, 500)) * MS;
            When::Reached { point: rng.pick(JOIN_POINTS), nth: 1 + rng.below(4), after }
        } else {
            some_time(rng, &points)
        };
        let back = rng.chance(600).then(|| rng.between((1, 400)) * MS);
        s.add(when, What::Dismiss(rng.pick(&[Who::Replica, Who::Joiner, Who::Here]), back));
    }
    let strike = |rng: &mut Rng| match rng.below(3) {
        0 => When::Reached { point: Point::Dismissed, nth: 1 + rng.below(2), after: 0 },
        1 => some_time(rng, &[Point::UnlistSent, Point::ListSent]),
        _ => some_time(rng, &points),
    };
    // One death at most: two could be nobody's to survive.
    match rng.below(6) {
        0..=2 => s.add_protected(strike(rng), What::Crash(Who::Active, reboot(rng))),
        3 => s.add_protected(strike(rng), What::Crash(Who::Replica, reboot(rng))),
        4 => s.add(strike(rng), What::Crash(Who::Joiner, reboot(rng))),
        _ => {}
    }
    for _ in 0..rng.below(3) {
        let what = match rng.below(3) {
            0 => What::Cut(rng.pick(RIFTS), rng.between((60, 900)) * MS),
            1 => What::Stall(Who::Active, stop_for(rng)),
            _ => What::ArbiterDown(rng.between((50, 800)) * MS),
        };
        s.add(strike(rng), what);
    }
}

fn election(rng: &mut Rng) -> What {
    What::LeaderDies(rng.between((300, 1000)) * MS)
}

fn leader_loss(s: &mut Scenario, rng: &mut Rng) {
    s.replicates = Some(rng.between((200, 5000)) * 1000);
    s.heal_at = 4500 * MS;
    let at = |point, nth| When::Reached { point, nth, after: 0 };
    let contest = rng.chance(400);
    if contest {
        // Without a leader both sides go on proposing, and the next one hears both at once.
        s.add_protected(some_time(rng, ACTIVE_POINTS), What::Cut(Rift::Pair, rng.between((1200, 2800)) * MS));
        s.add(at(rng.pick(&[Point::TakeoverReceived, Point::TakeoverAppended]), 1), election(rng));
        if rng.chance(700) {
            s.add(at(Point::Contested, 1 + rng.below(3)), election(rng));
        }
        return;
    }
    if rng.chance(700) {
        kill_active(s, rng);
    } else {
        let stop = What::Stall(Who::Active, rng.between((300, 900)) * MS);
        s.add_protected(some_time(rng, ACTIVE_POINTS), stop);
    }
    s.add(at(rng.pick(LEADER_POINTS), 1), election(rng));
    if rng.chance(300) {
        s.add(at(rng.pick(LEADER_POINTS), 2), election(rng));
    }
}

fn hand_overs(s: &mut Scenario, rng: &mut Rng) {
    s.heal_at = 3500 * MS;
    s.arbiter.delay.1 = rng.between((1, 60)) * MS;
    if rng.chance(300) {
        s.paths.delay.1 = rng.between((5, 40)) * MS;
    }
    s.costs.cut_fails_pm = if rng.chance(300) { 200 } else { 0 };
    let points = [ACTIVE_POINTS, REPLICA_POINTS].concat();
    for n in 0..rng.between((1, 3)) {
        let after = soon(rng) + n * 700 * MS;
        s.add_protected(
            When::Reached { point: rng.pick(&points), nth: 1 + rng.below(4), after },
            What::HandOver,
        );
    }
    if rng.chance(300) {
        return;
    }
    // Between the request and the guest's first step elsewhere.
    let points = [&[Point::Yielded, Point::HandOverAsked], ACTIVE_POINTS, TAKEOVER_POINTS].concat();
    let when = When::Reached { point: rng.pick(&points), nth: 1 + rng.below(3), after: 250 * MS };
    match rng.below(6) {
        0 => s.add_protected(when, What::Crash(Who::Active, reboot(rng))),
        1 => {
            // From its swap to its first own replica the one that takes over is the only one.
            s.survives = false;
            s.add_protected(when, What::Crash(Who::Replica, reboot(rng)));
        }
        2 => s.add(when, What::Stall(rng.pick(&[Who::Active, Who::Replica, Who::Here]), stop_for(rng))),
        3 => s.add(when, What::Cut(rng.pick(RIFTS), rng.between((30, 900)) * MS)),
        4 => s.add(when, What::ArbiterDown(rng.between((20, 1500)) * MS)),
        _ => s.add(when, What::Dismiss(Who::Replica, Some(rng.between((1, 400)) * MS))),
    }
}

fn lease(rng: &mut Rng) -> Mode {
    let of = std::time::Duration::from_millis;
    let length = if rng.chance(500) { 50 } else { rng.between((20, 600)) };
    // A loop that hangs is found out after 500 ms; only with more to lose does the lease matter then.
    let exposure = if rng.chance(500) { rng.between((20, 400)) } else { rng.between((600, 2000)) };
    let lease = Lease::new(of(length), of(exposure));
    Mode::Async(lease.expect("within its bounds"))
}

fn long_lease(rng: &mut Rng) -> Mode {
    let of = std::time::Duration::from_millis;
    Mode::Async(Lease::new(of(rng.between((300, 600))), of(2000)).expect("within its bounds"))
}

fn asynchronous(s: &mut Scenario, rng: &mut Rng) {
    s.heal_at = 2200 * MS;
    s.nodes = if rng.chance(300) { 3 } else { 2 };
    s.think = (MS, rng.between((4, 16)) * MS);
    s.arbiter.delay.1 = rng.between((1, 30)) * MS;
    s.policy = if rng.chance(150) { LossPolicy::Halt } else { LossPolicy::Degrade };
    if rng.chance(300) {
        s.paths.delay.1 = rng.between((5, 40)) * MS;
    }
    let first = rng.between((1, 200)) * MS;
    s.add(When::At(first), What::SetMode(lease(rng)));
    if rng.chance(400) {
        let mode = if rng.chance(500) { Mode::Sync } else { lease(rng) };
        s.add(
            some_time(rng, &[ACTIVE_POINTS, &[Point::Leased, Point::LeaseEnded]].concat()),
            What::SetMode(mode),
        );
    }
    let points = [&[Point::Leased, Point::LeaseEnded, Point::ModeAsked], ACTIVE_POINTS].concat();
    let strike = some_time(rng, &points);
    match rng.below(7) {
        0 => s.add_protected(strike, What::Crash(Who::Active, reboot(rng))),
        1 => s.add_protected(strike, What::Stall(Who::Active, stop_for(rng))),
        2 => {
            // Its stamps still arrive when it is suspected.
            s.add(When::At(first + 60 * MS), What::SetMode(long_lease(rng)));
            let length = rng.chance(700).then(|| rng.between((500, 1200)) * MS);
            s.add_protected(strike, What::Hang(Who::Active, length));
            if rng.chance(700) {
                // Nobody tells it.
                let alone = What::Cut(Rift::ActiveFromPeers, rng.between((300, 900)) * MS);
                s.add(When::Reached { point: Point::TakeoverSent, nth: 1, after: 0 }, alone);
            }
        }
        3 => s.add_protected(strike, What::Cut(rng.pick(RIFTS), rng.between((30, 900)) * MS)),
        4 => {
            // It echoes and commits nothing: what would be lost grows.
            let at = soon(rng);
            let length = rng.between((200, 480)) * MS;
            s.add_protected(When::At(at), What::Hang(Who::Replica, Some(length)));
            s.add_protected(When::At(at + length - MS), What::Crash(Who::Active, reboot(rng)));
        }
        5 => {
            s.add_protected(strike, What::HandOver);
            let stop = What::Stall(rng.pick(&[Who::Active, Who::Replica]), stop_for(rng));
            s.add(some_time(rng, &[Point::Yielded, Point::HandOverAsked, Point::TakeoverSent]), stop);
        }
        _ => {
            s.add_protected(strike, What::HandOver);
            s.costs.hand_over_patience = rng.between((20, 150)) * MS;
            s.paths.spike_pm = 100;
            s.paths.spike = rng.between((20, 200)) * MS;
            // The swap is applied when the active has just given up, with a lease in hand.
            s.add(When::At(first + 60 * MS), What::SetMode(long_lease(rng)));
            let down = What::ArbiterDown(s.costs.hand_over_patience + rng.between((1, 80)) * MS);
            s.add(When::Reached { point: Point::Yielded, nth: 1, after: 0 }, down);
        }
    }
    if rng.chance(300) {
        let stop = What::Stall(rng.pick(&[Who::Active, Who::Replica, Who::Here]), stop_for(rng));
        s.add(some_time(rng, TAKEOVER_POINTS), stop);
    }
}
