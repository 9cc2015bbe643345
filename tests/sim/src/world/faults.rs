//! Striking: deciding whom a planned fault hits, and doing it.

use super::{Deferred, Event, Pid, Proc, Role, World};
use crate::clock::MS;
use crate::effect::{Input, Point, Timer};
use crate::net::Way;
use crate::scenario::{Planned, Rift, What, When, Who};

/// A planned fault and how far it has got.
#[derive(Debug)]
pub(super) struct Armed {
    plan: Planned,
    seen: u64,
    done: bool,
}

impl Armed {
    pub(super) fn new(plan: Planned) -> Self {
        Self { plan, seen: 0, done: false }
    }

    pub(super) fn time(&self) -> Option<u64> {
        match self.plan.when {
            When::At(at) => Some(at),
            When::Reached { .. } => None,
        }
    }

    pub(super) fn disarm(&mut self) {
        self.done = true;
    }
}

impl World {
    /// Whether the record lists a replica that is alive, so that the active may be lost.
    fn is_protected(&self) -> bool {
        let record = self.record();
        let runs = |m| self.pids.get(&m).is_some_and(|p| self.procs.contains_key(p));
        runs(record.active) && record.in_sync.iter().any(|l| runs(l.member))
    }

    pub(super) fn strike_timed(&mut self, index: usize) {
        let Armed { plan, done, .. } = self.armed[index];
        if done {
            return;
        }
        if plan.protected && !self.is_protected() {
            self.after(20 * MS, Event::Strike(index));
            return;
        }
        self.armed[index].done = true;
        self.strike(plan.what, None);
    }

    pub(super) fn reached(&mut self, pid: Pid, point: Point) {
        self.note_point(pid, point);
        for index in 0..self.armed.len() {
            let Armed { plan, seen, done } = self.armed[index];
            let When::Reached { point: wanted, nth, after } = plan.when else { continue };
            if done || wanted != point || self.now < after || plan.protected && !self.is_protected() {
                continue;
            }
            self.armed[index].seen += 1;
            if seen + 1 >= nth {
                self.armed[index].done = true;
                self.strike(plan.what, Some(pid));
            }
        }
    }

    pub(super) fn pick(&self, who: Who, here: Option<Pid>) -> Option<Pid> {
        let record = self.record();
        let alive = |m| self.pids.get(&m).copied().filter(|p| self.procs.contains_key(p));
        match who {
            Who::Active => alive(record.active),
            Who::Here => here,
            Who::Joiner => {
                let joins = |(_, p): &(&Pid, &Proc)| {
                    let member = p.process.member;
                    let listed = record.active == member || record.lists(member);
                    matches!(p.process.role, Role::Passive(_)) && !listed
                };
                self.procs.iter().find(joins).map(|(pid, _)| *pid)
            }
            Who::Replica => record.in_sync.iter().find_map(|l| alive(l.member)).or_else(|| {
                let passive = |p: &&Pid| matches!(self.procs[p].process.role, Role::Passive(_));
                self.procs.keys().find(passive).copied()
            }),
        }
    }

    fn strike(&mut self, what: What, here: Option<Pid>) {
        self.note(|| format!("FAULT {what:?}"));
        match what {
            What::Crash(who, back) => {
                if let Some(pid) = self.pick(who, here) {
                    let told = self.rng.chance(500);
                    self.end_process(pid, told, back, "killed");
                }
            }
            What::Stall(who, length) => {
                if let Some(pid) = self.pick(who, here) {
                    self.stall(pid, length);
                }
            }
            What::Hang(who, length) => {
                if let Some(pid) = self.pick(who, here) {
                    self.note(|| format!("process {pid} hangs"));
                    self.set_hung(pid, true);
                    if let Some(length) = length {
                        self.after(length, Event::Unhang(pid));
                    }
                }
            }
            What::Cut(rift, length) => self.cut(rift, length),
            What::ArbiterDown(length) => {
                self.arbiter.down += 1;
                self.after(length, Event::ArbiterUp);
            }
            What::Reset => {
                let conns: Vec<_> = self.conns.keys().copied().collect();
                conns.into_iter().for_each(|c| self.conn_dies(c));
            }
            What::Dismiss(who, back) => self.dismiss(self.pick(who, here), back),
            What::HandOver => {
                if let Some(pid) = self.pick(Who::Active, None) {
                    self.stats.hand_overs += 1;
                    self.deliver(pid, Input::HandOver);
                }
            }
            What::SetMode(mode) => {
                if let Some(pid) = self.pick(Who::Active, None) {
                    self.deliver(pid, Input::SetMode(mode));
                }
            }
            What::LeaderDies(silence) => self.leader_dies(silence),
        }
    }

    fn stall(&mut self, pid: Pid, length: u64) {
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        if !proc.stalled {
            proc.stalled = true;
            self.note(|| format!("process {pid} is stopped for {} ms", length / MS));
            self.after(length, Event::Resume(pid));
        }
    }

    /// A stopped process goes on: first with what it was doing; then its jobs and its sockets, in either order; its timers
    /// last, because it drains its sockets before it judges anybody's silence.
    pub(super) fn resume(&mut self, pid: Pid) {
        let Some(proc) = self.procs.get_mut(&pid).filter(|p| p.stalled) else { return };
        proc.stalled = false;
        let mut deferred = std::mem::take(&mut proc.deferred);
        let jobs_first = self.rng.chance(500);
        deferred.sort_by_key(|d| match d {
            Deferred::Effects(_) => 0,
            Deferred::Input(Input::Timer(Timer::Tick | Timer::Discover) | Input::Peers(_)) => 3,
            Deferred::Input(input) => 1 + u8::from(input.is_arrival() == jobs_first),
        });
        self.note(|| format!("process {pid} is continued"));
        let mut rest = deferred.into_iter();
        while let Some(next) = rest.next() {
            match next {
                Deferred::Effects(effects) => self.apply(pid, effects),
                Deferred::Input(input) => self.deliver(pid, input),
            }
            let Some(proc) = self.procs.get_mut(&pid) else { return };
            if proc.stalled {
                proc.deferred.extend(rest);
                return;
            }
        }
    }

    pub(super) fn set_hung(&mut self, pid: Pid, hung: bool) {
        if let Some(proc) = self.procs.get_mut(&pid) {
            let mut fx = Vec::new();
            proc.process.set_hung(self.now, hung, &mut fx);
            self.apply(pid, fx);
        }
    }

    fn cut(&mut self, rift: Rift, length: u64) {
        let ways = self.ways(rift);
        for way in &ways {
            self.cuts.cut(*way);
        }
        let hit: Vec<_> = self.conns.keys().copied().collect();
        for conn in hit {
            // An idle connection gives up some time into the cut, or lives through it.
            let timeout = self.rng.between((50, 600)) * MS;
            if timeout < length && self.rng.chance(400) {
                self.after(timeout, Event::ConnDies(conn));
            }
        }
        self.after(length, Event::Mend(ways));
    }

    fn ways(&self, rift: Rift) -> Vec<Way> {
        let node = |who| self.pick(who, None).and_then(|p| self.procs.get(&p)).map(|p| p.node);
        let active = node(Who::Active).unwrap_or(0);
        let replica = node(Who::Replica).unwrap_or(self.nodes.len() - 1);
        let others: Vec<_> = (0..self.nodes.len()).filter(|n| *n != active).collect();
        let from_active = || others.iter().map(|o| Way::Nodes(active, *o));
        let to_active = || others.iter().map(|o| Way::Nodes(*o, active));
        let arbiter = |n| [Way::ToArbiter(n), Way::FromArbiter(n)];
        match rift {
            Rift::Pair => from_active().chain(to_active()).collect(),
            Rift::ActiveMute => from_active().collect(),
            Rift::ActiveDeaf => to_active().collect(),
            Rift::ActiveFromPeers => from_active().chain(to_active()).chain(arbiter(active)).collect(),
            Rift::ActiveAlone => {
                let peers = from_active().chain(to_active()).chain(arbiter(active));
                peers.chain([Way::Clients(active)]).collect()
            }
            Rift::ReplicaAlone => (0..self.nodes.len())
                .flat_map(|n| [Way::Nodes(n, replica), Way::Nodes(replica, n)])
                .chain(arbiter(replica))
                .collect(),
            Rift::ActiveArbiter => arbiter(active).into(),
            Rift::ReplicaArbiter => others.iter().flat_map(|n| arbiter(*n)).collect(),
            Rift::ArbiterMute => (0..self.nodes.len()).map(Way::FromArbiter).collect(),
        }
    }

    pub(super) fn mend(&mut self, ways: &[Way]) {
        ways.iter().for_each(|way| self.cuts.mend(*way));
        self.note(|| format!("mended {ways:?}"));
        self.unpark();
    }
}
