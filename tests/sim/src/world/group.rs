//! The arbiter as a group of three whose leader may die.
//!
//! ```text
//!   received ──> appended ──────────> replicated: decided ──> answered
//!     lost        lost, or kept:        kept, and the          kept
//!                 only the next         reply lost
//!                 leader knows
//! ```
//! What a dead leader alone had is lost; what a follower has too, the next leader decides before it answers anybody. Reads
//! go the same way, so that no deposed leader answers one. The daemon of a node asks whoever leads again until it gives
//! up, so that the next leader hears, perhaps twice, what its predecessor did not answer.

use std::collections::VecDeque;

use mycelium_ram_core::OpId;
use mycelium_ram_core::record::Change;
use mycelium_ram_core::sabotage::{Sabotage, sabotaged};
use mycelium_ram_core::settle::{Reply, Request};

use super::{Event, Pid, World};
use crate::clock::MS;
use crate::effect::Point;

/// A daemon asks whoever leads for so long.
pub(super) const PATIENCE: u64 = 900 * MS;
/// It asks again this often.
const RETRY: u64 = 20 * MS;

/// A request on its way.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(super) node: usize,
    pub(super) from: Pid,
    pub(super) request: Request,
    pub(super) until: u64,
}

impl Asked {
    fn change(&self) -> Option<&Change> {
        match &self.request {
            Request::Swap(swap) => Some(&swap.change),
            Request::Read => None,
        }
    }

    fn takeover(&self) -> Option<OpId> {
        match &self.request {
            Request::Swap(swap) if matches!(swap.change, Change::TakeOver { .. }) => Some(swap.op),
            _ => None,
        }
    }
}

/// The group.
#[derive(Debug)]
pub(super) struct Group {
    replicates: u64,
    term: u64,
    /// Appended by the leader and not yet replicated.
    log: VecDeque<Asked>,
    /// Of a dead leader's log, what a follower has.
    inherited: Vec<Asked>,
    /// What no leader has answered.
    unanswered: Vec<Asked>,
    /// The takeovers at whose moment leaders have died, until the next one says what became of them.
    at_stake: Vec<OpId>,
}

impl Group {
    pub(super) fn new(replicates: u64) -> Self {
        Self {
            replicates,
            term: 1,
            log: VecDeque::new(),
            inherited: Vec::new(),
            unanswered: Vec::new(),
            at_stake: Vec::new(),
        }
    }

    /// Whether both sides of a lost pair wait for a decision.
    fn is_contested(&self) -> bool {
        let unlists = |a: &Asked| matches!(a.change(), Some(Change::Unlist { .. }));
        self.log.iter().any(unlists) && self.log.iter().any(|a| a.takeover().is_some())
    }
}

impl World {
    fn group(&mut self) -> &mut Group {
        self.arbiter.group.as_mut().expect("only called for a group")
    }

    /// The leader, if there is one, receives a request.
    pub(super) fn at_leader(&mut self, asked: Asked) {
        if self.arbiter.down > 0 || self.leader_dies_at(Point::TakeoverReceived, &asked) {
            self.group().unanswered.push(asked);
            return;
        }
        let group = self.group();
        group.log.push_back(asked.clone());
        let (replicates, term) = (group.replicates, group.term);
        let point = if group.is_contested() { Point::Contested } else { Point::TakeoverAppended };
        self.after(replicates, Event::Replicated { term });
        self.leader_dies_at(point, &asked);
    }

    /// A follower has the oldest entry: it is decided.
    pub(super) fn replicated(&mut self, term: u64) {
        let group = self.group();
        let Some(asked) = (group.term == term).then(|| group.log.pop_front()).flatten() else { return };
        let reply = self.reply_to(&asked);
        let applied = matches!(reply, Reply::Applied { .. });
        if applied && self.leader_dies_at(Point::TakeoverReplicated, &asked) {
            self.group().unanswered.push(asked);
            return;
        }
        self.send_reply(&asked, reply);
        if applied {
            self.leader_dies_at(Point::TakeoverAnswered, &asked);
        }
    }

    /// A fault may strike at this step of a takeover, or of what contests it. Whether it killed the leader.
    fn leader_dies_at(&mut self, point: Point, asked: &Asked) -> bool {
        let group = self.group();
        let log = group.log.iter().rev().filter(|_| point == Point::Contested);
        let Some(op) = asked.takeover().or_else(|| log.filter_map(Asked::takeover).next()) else {
            return false;
        };
        let term = group.term;
        self.reached(asked.from, point);
        let died = self.group().term != term;
        if died {
            self.stats.contested += u64::from(point == Point::Contested);
            self.group().at_stake.push(op);
        }
        died
    }

    /// Of what the leader had not yet replicated, a follower may have received the beginning.
    pub(super) fn leader_dies(&mut self, silence: u64) {
        if self.arbiter.group.is_none() {
            return;
        }
        let log = std::mem::take(&mut self.group().log);
        let received = usize::try_from(self.rng.below(log.len() as u64 + 1)).expect("a short log");
        self.stats.leaders_lost += 1;
        self.note(|| format!("arbiter: of {} entries the next leader has {received}", log.len()));
        let group = self.group();
        group.term += 1;
        group.inherited.extend(log.iter().take(received).cloned());
        group.unanswered.extend(log);
        self.arbiter.down += 1;
        self.after(silence, Event::ArbiterUp);
    }

    /// The next leader decides what it has from its predecessor, then hears what that one did not answer.
    pub(super) fn elected(&mut self) {
        if sabotaged(Sabotage::ReplicatedSwapForgotten) {
            self.arbiter.record = self.arbiter.before.clone();
        }
        for asked in std::mem::take(&mut self.group().inherited) {
            self.reply_to(&asked);
        }
        for op in std::mem::take(&mut self.group().at_stake) {
            let kept = self.record().holds(op);
            self.stats.swaps_kept += u64::from(kept);
            self.stats.swaps_lost += u64::from(!kept);
            let fate = if kept { "kept" } else { "lost" };
            self.note(|| format!("arbiter: the takeover {op:?} was {fate}"));
        }
        for asked in std::mem::take(&mut self.group().unanswered) {
            if asked.until > self.now {
                let delay = self.rng.below(RETRY);
                self.after(delay, Event::AtArbiter(asked));
            }
        }
    }
}
