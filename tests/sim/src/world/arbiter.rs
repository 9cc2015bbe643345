//! The arbiter: the core's `decide` around a record that survives its own crashes.

use mycelium_ram_core::record::{Change, LossPolicy, Record, Swap, Verdict, decide};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{Member, OpId, VmId};

use super::{Event, Pid, World};
use crate::net::Way;

/// The arbiter process and its disk.
#[derive(Debug, Default)]
pub(super) struct Arbiter {
    pub(super) record: Option<Record>,
    pub(super) down: u32,
}

impl Arbiter {
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
            self.after(delay, Event::AtArbiter { node, from: pid, request: request.clone() });
        }
    }

    pub(super) fn at_arbiter(&mut self, node: usize, from: Pid, request: &Request) {
        if self.arbiter.down > 0 || !self.cuts.passes(Way::ToArbiter(node)) {
            return;
        }
        let reply = match request {
            Request::Read => Reply::Record(self.arbiter.record.clone()),
            Request::Swap(swap) => self.decide(from, swap),
        };
        if self.rng.chance(self.scenario.arbiter.loss_pm) {
            return;
        }
        let delay = self.scenario.arbiter.delay(&mut self.rng);
        self.after(delay, Event::FromArbiter { node, to: from, reply });
    }

    fn decide(&mut self, from: Pid, swap: &Swap) -> Reply {
        let record = self.arbiter.record.clone();
        match (decide(record.as_ref(), swap), record) {
            (Verdict::Apply(next), _) => {
                self.arbiter.record = Some(next.clone());
                self.witness.record(self.now, &next);
                match swap.change {
                    Change::TakeOver { .. } => self.stats.takeovers += 1,
                    Change::Unlist { .. } => self.stats.degrades += 1,
                    Change::Create { .. } | Change::List { .. } => {}
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
    }
}
