//! One process of the simulated driver: what stands between the pure core and the world. It treats the core as the real
//! driver does, so the order of its steps is the order of the real one.

mod active;
mod cut;
mod passive;
mod release;
mod session;
mod takeover;

use std::collections::VecDeque;
use std::time::Duration;

use mycelium_ram_core::message::Message;
use mycelium_ram_core::primary::PrimaryConfig;
use mycelium_ram_core::record::Record;
use mycelium_ram_core::{EpochId, Member, Time, VmId};

pub use active::Active;
pub use passive::Passive;

use crate::clock::{Clock, MS, US};
use crate::effect::{Effect, Input, Report, Timer};
use crate::rng::Rng;

/// How long things take in a process, in nanoseconds, each as lowest and highest.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// The pause of a cut.
    pub pause: (u64, u64),
    /// Sending one frame.
    pub send: (u64, u64),
    /// Copying one block of the disk.
    pub copy: (u64, u64),
    /// Applying one epoch to the image.
    pub apply: (u64, u64),
    /// Setting up the vCPUs at a takeover.
    pub resume: (u64, u64),
    /// Between two ticks of the guest's own timer.
    pub guest_tick: (u64, u64),
    /// How long a guest stands still for a planned handover.
    pub hand_over_patience: u64,
    /// Cuts of 1000 that fail.
    pub cut_fails_pm: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            pause: (50 * US, 600 * US),
            send: (5 * US, 60 * US),
            copy: (100 * US, 5 * MS),
            apply: (20 * US, 300 * US),
            resume: (200 * US, 3 * MS),
            guest_tick: (3 * MS, 14 * MS),
            hand_over_patience: 1000 * MS,
            cut_fails_pm: 0,
        }
    }
}

/// Interval of the core's tick.
const TICK: u64 = 5 * MS;
/// Interval of the search for replicas.
const DISCOVER: u64 = 30 * MS;
/// Time between two actions of one decision.
const STEP: u64 = US;

/// What a process needs from outside while it handles one input.
#[derive(Debug)]
pub struct Cx<'a> {
    now: Time,
    me: Member,
    hung: bool,
    costs: &'a Costs,
    rng: &'a mut Rng,
    fx: &'a mut Vec<Effect>,
}

impl Cx<'_> {
    fn primary_config(&self) -> PrimaryConfig {
        let hand_over_patience = Duration::from_nanos(self.costs.hand_over_patience);
        PrimaryConfig { hand_over_patience, ..PrimaryConfig::default() }
    }

    fn after(&mut self, delay: u64, timer: Timer) {
        self.fx.push(Effect::After(delay, timer));
    }

    fn report(&mut self, report: Report) {
        self.fx.push(Effect::Report(report));
    }

    fn datagram(&mut self, to: Member, message: &Message) {
        self.fx.push(Effect::Datagram(to, message.encode()));
    }
}

/// Decided actions, carried out one at a time so that a fault can strike between any two.
#[derive(Debug)]
struct Todo<A> {
    actions: VecDeque<(Time, A)>,
    stepping: bool,
}

impl<A> Default for Todo<A> {
    fn default() -> Self {
        Self { actions: VecDeque::new(), stepping: false }
    }
}

impl<A> Todo<A> {
    fn add(&mut self, actions: Vec<A>, cx: &mut Cx<'_>) {
        self.actions.extend(actions.into_iter().map(|action| (cx.now, action)));
        if !self.stepping && !self.actions.is_empty() {
            self.stepping = true;
            cx.after(STEP, Timer::Step);
        }
    }

    fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The next action and when it was decided.
    fn next(&mut self, cx: &mut Cx<'_>) -> Option<(Time, A)> {
        let action = self.actions.pop_front();
        self.stepping = !self.actions.is_empty();
        if self.stepping {
            cx.after(STEP, Timer::Step);
        }
        action
    }
}

/// What a process is at the moment.
#[derive(Debug)]
pub enum Role {
    /// Passive, without an active that made it an offer.
    Waiting,
    /// The replica of an active.
    Passive(Box<Passive>),
    /// It runs the guest.
    Active(Box<Active>),
    /// Its part is over; the process is about to be started again.
    Ended,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Which process of which node.
    pub member: Member,
    /// What it is.
    pub role: Role,
    vm: VmId,
    clock: Clock,
    costs: Costs,
    rng: Rng,
    hung: bool,
}

impl Process {
    /// A process that waits for an offer.
    #[must_use]
    pub fn passive(member: Member, vm: VmId, clock: Clock, costs: Costs, rng: Rng) -> Self {
        Self { member, role: Role::Waiting, vm, clock, costs, rng, hung: false }
    }

    /// Makes it the first active, which boots the guest.
    pub fn boot(&mut self, now: u64, record: Record, fx: &mut Vec<Effect>) {
        let mut cx = cx!(self, now, fx);
        self.role = Role::Active(Box::new(Active::boot(record, &mut cx)));
    }

    /// Starts its timers.
    pub fn start(&mut self, fx: &mut Vec<Effect>) {
        fx.push(Effect::After(self.rng.below(TICK), Timer::Tick));
        fx.push(Effect::After(self.rng.below(DISCOVER), Timer::Discover));
    }

    /// Whether its epoch or staging loop hangs while the rest of it lives.
    pub fn set_hung(&mut self, now: u64, hung: bool, fx: &mut Vec<Effect>) {
        self.hung = hung;
        let mut cx = cx!(self, now, fx);
        match &mut self.role {
            Role::Active(active) if !hung => active.go_on(&mut cx),
            Role::Passive(passive) if !hung => passive.go_on(&mut cx),
            _ => {}
        }
    }

    /// Handles one input.
    pub fn handle(&mut self, now: u64, input: Input, fx: &mut Vec<Effect>) {
        match input {
            Input::Timer(Timer::Tick) => fx.push(Effect::After(TICK, Timer::Tick)),
            Input::Timer(Timer::Discover) => fx.push(Effect::After(DISCOVER, Timer::Discover)),
            _ => {}
        }
        let mut cx = cx!(self, now, fx);
        let promoted = match &mut self.role {
            Role::Active(active) => {
                active.handle(input, &mut cx);
                None
            }
            Role::Passive(passive) => passive.handle(input, &mut cx),
            Role::Waiting => {
                if let Some(passive) = Passive::accept(&self.vm, &input, &mut cx) {
                    self.role = Role::Passive(Box::new(passive));
                }
                None
            }
            Role::Ended => None,
        };
        if let (Some((epoch, record)), Role::Passive(_)) = (promoted, &self.role) {
            self.take_over(now, epoch, record, fx);
        }
        if fx.iter().any(|e| matches!(e, Effect::Exit(_))) {
            self.role = Role::Ended;
        }
    }

    fn take_over(&mut self, now: u64, epoch: EpochId, record: Record, fx: &mut Vec<Effect>) {
        let Role::Passive(passive) = std::mem::replace(&mut self.role, Role::Ended) else { return };
        let mut cx = cx!(self, now, fx);
        if let Some(active) = takeover::take_over(*passive, epoch, record, &mut cx) {
            self.role = Role::Active(Box::new(active));
        }
    }
}

/// The context for one input; a macro because it borrows fields beside `role`.
macro_rules! cx {
    ($p:ident, $now:expr, $fx:expr) => {
        Cx {
            now: $p.clock.read($now),
            me: $p.member,
            hung: $p.hung,
            costs: &$p.costs,
            rng: &mut $p.rng,
            fx: $fx,
        }
    };
}
use cx;
