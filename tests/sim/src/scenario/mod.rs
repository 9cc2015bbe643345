//! What is done to the system in one run, drawn from the seed.

mod classes;

use mycelium_ram_core::mode::Mode;
use mycelium_ram_core::record::LossPolicy;

pub use classes::Class;

use crate::clock::MS;
use crate::effect::Point;
use crate::net::Quality;
use crate::process::Costs;
use crate::rng::Rng;

/// Whom a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The process the record calls active.
    Active,
    /// A passive process, a listed one if there is one.
    Replica,
    /// A passive process that the record does not list.
    Joiner,
    /// The process that reached the point.
    Here,
}

/// Which directions a cut takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rift {
    /// Both ways between the active and every replica.
    Pair,
    /// What the active sends to replicas.
    ActiveMute,
    /// What replicas send to the active.
    ActiveDeaf,
    /// The active from everything, the clients included.
    ActiveAlone,
    /// A replica from everything.
    ReplicaAlone,
    /// The active from replicas and arbiter; clients still reach it.
    ActiveFromPeers,
    /// The active from the arbiter.
    ActiveArbiter,
    /// Replicas from the arbiter.
    ReplicaArbiter,
    /// What the arbiter answers to anybody.
    ArbiterMute,
}

/// A fault.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// The process dies; its node starts another one after so many nanoseconds.
    Crash(Who, u64),
    /// The process is stopped for so long, as by SIGSTOP.
    Stall(Who, u64),
    /// Its epoch loop hangs while its heartbeats go on: for so long, or until the process is replaced.
    Hang(Who, Option<u64>),
    /// Directions are cut for so long.
    Cut(Rift, u64),
    /// The arbiter is down for so long; its record is durable.
    ArbiterDown(u64),
    /// All connections break.
    Reset,
    /// The operator wants no replica on its node any more, but one on every node he did without; on this one again after so
    /// many nanoseconds, or never.
    Dismiss(Who, Option<u64>),
    /// The operator has the guest go on at a replica, whichever.
    HandOver,
    /// The operator has output wait for its epoch, or not.
    SetMode(Mode),
    /// The leader of the arbiter's group dies; after so many nanoseconds another one leads.
    LeaderDies(u64),
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// At this time.
    At(u64),
    /// When any process has reached the point for the n-th time since `after`.
    Reached {
        /// Which point.
        point: Point,
        /// Which time it is reached.
        nth: u64,
        /// Not counted before this time.
        after: u64,
    },
}

/// One planned fault.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// When.
    pub when: When,
    /// What.
    pub what: What,
    /// Only while the record lists a replica that is alive.
    pub protected: bool,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The class it was drawn from.
    pub class: Class,
    /// Nodes, the first of which boots the guest.
    pub nodes: usize,
    /// Clients.
    pub clients: u8,
    /// Time between an answer and the next request, in nanoseconds.
    pub think: (u64, u64),
    /// The VM's policy.
    pub policy: LossPolicy,
    /// Paths between nodes.
    pub paths: Quality,
    /// Paths to the arbiter.
    pub arbiter: Quality,
    /// The arbiter is a group of three, whose leader needs so many nanoseconds to replicate; none: it is one process.
    pub replicates: Option<u64>,
    /// Nodes on which the operator wants no replica to begin with.
    pub unwanted: Vec<usize>,
    /// How long steps take in a process.
    pub costs: Costs,
    /// The faults.
    pub faults: Vec<Planned>,
    /// When everything is repaired.
    pub heal_at: u64,
    /// The class promises that the VM lives at the end.
    pub survives: bool,
    /// The class promises that no client has to ask again after the takeover.
    pub prompt: bool,
}

impl Scenario {
    /// Draws the run of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let class = Class::of(seed);
        let mut scenario = Self::calm(class, &mut rng);
        class.fill(&mut scenario, &mut rng);
        scenario
    }

    fn calm(class: Class, rng: &mut Rng) -> Self {
        let nodes = if rng.chance(300) { 3 } else { 2 };
        Self {
            class,
            nodes,
            clients: u8::try_from(rng.between((2, 4))).expect("a few"),
            think: (MS / 2, rng.between((2, 20)) * MS),
            policy: LossPolicy::Degrade,
            paths: Quality::LOCAL,
            arbiter: Quality { delay: (100_000, rng.between((1, 6)) * MS), ..Quality::LOCAL },
            replicates: None,
            unwanted: Vec::new(),
            costs: Costs::default(),
            faults: Vec::new(),
            heal_at: 1800 * MS,
            survives: true,
            prompt: false,
        }
    }

    fn add(&mut self, when: When, what: What) {
        self.faults.push(Planned { when, what, protected: false });
    }

    fn add_protected(&mut self, when: When, what: What) {
        self.faults.push(Planned { when, what, protected: true });
    }
}
