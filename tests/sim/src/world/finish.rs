//! The end of a run: heal everything, demand progress, then let it come to rest and take its last state.

use super::{Event, Phase, Pid, Role, World};
use crate::clock::MS;
use crate::limits;
use crate::oracle::{Final, Survivor};

const LOOK_EVERY: u64 = 20 * MS;
/// Long enough for the last epochs to commit, short of any timer that changes something.
const REST: u64 = 300 * MS;
/// Answers each client must get to requests made after the heal.
const ANSWERS: u64 = 2;

impl World {
    pub(super) fn heal(&mut self) {
        self.note(|| "HEAL everything".to_owned());
        self.cuts.heal();
        if std::mem::take(&mut self.arbiter.down) > 0 {
            self.arbiter_up();
        }
        self.want_somebody();
        self.scenario.paths = self.scenario.paths.healed();
        self.scenario.arbiter = self.scenario.arbiter.healed();
        self.scenario.costs.cut_fails_pm = 0;
        self.armed.iter_mut().for_each(super::Armed::disarm);
        self.unpark();
        let all: Vec<Pid> = self.procs.keys().copied().collect();
        all.into_iter().for_each(|pid| self.resume(pid));
        self.phase = Phase::Settling { since: self.now };
        self.after(LOOK_EVERY, Event::Check);
    }

    /// Looks whether all is well, and goes one phase on when it is. A run that never gets well ends when time is up.
    pub(super) fn check(&mut self) {
        self.after(LOOK_EVERY, Event::Check);
        match self.phase {
            Phase::Settling { since } if self.is_well() => {
                self.note(|| "all is well; clients stop".to_owned());
                self.witness.well_after = Some(self.now - since);
                self.phase = Phase::Draining { since: self.now };
            }
            Phase::Draining { .. } if self.clients.iter().all(|c| c.waits_for.is_none()) => {
                self.after(REST, Event::End);
                self.phase = Phase::Resting;
            }
            Phase::Settling { since } | Phase::Draining { since } => {
                if self.now > since + limits::SETTLE_NS || self.is_down_for_good() {
                    self.phase = Phase::Over;
                }
            }
            Phase::Faults | Phase::Resting | Phase::Over => {}
        }
    }

    fn runs(&self, member: mycelium_ram_core::Member) -> Option<&super::Proc> {
        self.pids.get(&member).and_then(|pid| self.procs.get(pid))
    }

    fn is_well(&self) -> bool {
        let record = self.record();
        let active = self.runs(record.active);
        let lives = active.is_some_and(|p| matches!(p.process.role, Role::Active(_)));
        let guarded = record.in_sync.iter().any(|l| self.runs(l.member).is_some());
        // A dismissed replica has left the record: whoever guards now is a wanted one.
        let obeyed = record.in_sync.iter().all(|l| self.wants(l.member));
        lives && guarded && obeyed && self.clients.iter().all(|c| c.answered_since_heal >= ANSWERS)
    }

    /// Nobody is left who may run the guest.
    fn is_down_for_good(&self) -> bool {
        let record = self.record();
        self.runs(record.active).is_none() && record.in_sync.iter().all(|l| self.runs(l.member).is_none())
    }

    /// What is left when the run is over.
    pub(super) fn last_state(&self) -> Final {
        let record = self.record().clone();
        let active = self.runs(record.active).and_then(|p| match &p.process.role {
            Role::Active(active) => {
                let guest = active.guest();
                Some(Survivor { member: record.active, pages: guest.pages().clone(), state: guest.state() })
            }
            _ => None,
        });
        let listed = record.in_sync.iter().filter_map(|l| self.runs(l.member));
        let replicas = listed.filter_map(|p| match &p.process.role {
            Role::Passive(passive) => {
                let (pages, state) = passive.whole();
                Some(Survivor { member: p.process.member, pages, state })
            }
            _ => None,
        });
        Final {
            active,
            replicas: replicas.collect(),
            down_for_good: self.is_down_for_good(),
            unanswered: self.clients.iter().filter_map(|c| c.waits_for).collect(),
            now: self.now,
            record,
        }
    }
}
