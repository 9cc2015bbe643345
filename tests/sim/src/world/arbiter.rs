//! The arbiter: the core's `decide` around a record that survives its own crashes.

use mycelium_ram_core::record::{Change, LossPolicy, Record, Swap, Verdict, decide};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{Member, OpId, VmId};

use super::group::{Asked, Group, PATIENCE};
use super::{Event, Pid, World};
use crate::net::Way;

/// The arbiter and its durable record.
#[derive(Debug)]
pub(super) struct Arbiter {
    pub(super) record: Option<Record>,
    /// The record before its newest change.
    pub(super) before: Option<Record>,
    pub(super) down: u32,
    /// None: one process, which decides at once.
    pub(super) group: Option<Group>,
}

impl Arbiter {
    pub(super) fn new(replicates: Option<u64>) -> Self {
        Self { record: None, before: None, down: 0, group: replicates.map(Group::new) }
    }

    pub(super) fn create(&mut self, vm: &VmId, active: Member, policy: LossPolicy) -> Record {
        let op = OpId { incarnation: active.incarnation, count: 1 };
        let change = Change::Create { policy };
        let swap = Swap { vm: vm.clone(), expected_version: 0, proposer: active, op, change };
        let Verdict::Apply(record) = decide(None, &swap) else { unreachable!("there is no record yet") };
        self.record = Some(record.clone());
        record
    }
}

impl World {
    pub(super) fn record(&self) -> &Record {
        self.arbiter.record.as_ref().expect("made at the start")
    }

    pub(super) fn ask_arbiter(&mut self, pid: Pid, request: Request) {
        let Some(node) = self.procs.get(&pid).map(|p| p.node) else { return };
        if !self.cuts.passes(Way::ToArbiter(node)) || self.rng.chance(self.scenario.arbiter.loss_pm) {
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(self.scenario.arbiter.double_pm));
        for _ in 0..copies {
            let delay = self.scenario.arbiter.delay(&mut self.rng);
            let until = self.now + delay + PATIENCE;
            self.after(delay, Event::AtArbiter(Asked { node, from: pid, request: request.clone(), until }));
        }
    }

    pub(super) fn at_arbiter(&mut self, asked: Asked) {
        if !self.cuts.passes(Way::ToArbiter(asked.node)) {
            return;
        }
        if self.arbiter.group.is_some() {
            self.at_leader(asked);
        } else if self.arbiter.down == 0 {
            let reply = self.reply_to(&asked);
            self.send_reply(&asked, reply);
        }
    }

    pub(super) fn reply_to(&mut self, asked: &Asked) -> Reply {
        match &asked.request {
            Request::Read => Reply::Record(self.arbiter.record.clone()),
            Request::Swap(swap) => self.decide(asked.from, swap),
        }
    }

    pub(super) fn send_reply(&mut self, asked: &Asked, reply: Reply) {
        if self.rng.chance(self.scenario.arbiter.loss_pm) {
            return;
        }
        let delay = self.scenario.arbiter.delay(&mut self.rng);
        self.after(delay, Event::FromArbiter { node: asked.node, to: asked.from, reply });
    }

    fn decide(&mut self, from: Pid, swap: &Swap) -> Reply {
        let record = self.arbiter.record.clone();
        match (decide(record.as_ref(), swap), record) {
            (Verdict::Apply(next), _) => {
                self.arbiter.before = self.arbiter.record.replace(next.clone());
                self.witness.record(self.now, &next);
                match swap.change {
                    Change::TakeOver { .. } => self.stats.takeovers += 1,
                    Change::Unlist { .. } => self.stats.degrades += 1,
                    Change::SetMode { .. } => self.stats.modes_set += 1,
                    Change::Create { .. } | Change::List { .. } | Change::SetPace { .. } => {}
                }
                let change = &swap.change;
                self.note(|| format!("arbiter: process {from} gets {change:?}, version {}", next.version));
                Reply::Applied { op: swap.op, record: next }
            }
            (Verdict::Already, Some(record)) => Reply::Applied { op: swap.op, record },
            (Verdict::Refuse(refusal), record) => {
                if matches!(swap.change, Change::TakeOver { .. }) {
                    self.stats.takeovers_failed += 1;
                }
                let change = &swap.change;
                self.note(|| format!("arbiter: process {from} is refused {change:?}: {refusal}"));
                Reply::Refused { op: swap.op, refusal, record }
            }
            (Verdict::Already, None) => unreachable!("no record holds no operation"),
        }
    }

    pub(super) fn arbiter_up(&mut self) {
        self.arbiter.down = self.arbiter.down.saturating_sub(1);
        self.note(|| "arbiter: up".to_owned());
        if self.arbiter.down == 0 && self.arbiter.group.is_some() {
            self.elected();
        }
    }
}
