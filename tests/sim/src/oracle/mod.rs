//! The oracle: what was seen from outside, and the invariants it must satisfy. It knows nothing of faults.
//!
//! It sees what clients and networks see (requests as they reach a host, frames as they leave one), the arbiter's public
//! record with its changes, which processes existed when, and what is left at the end. Its own execution of the guest
//! says what should be there.

mod bounded;
mod degrade_in_open;
mod exposure;
mod liveness;
mod nothing_lost;
mod one_active;
mod one_record;
mod output_commit;
mod prompt_replay;
mod reference;
mod whole_epochs;

use std::collections::BTreeMap;

use bytes::Bytes;
use mycelium_ram_core::mode::{Lease, Mode};
use mycelium_ram_core::record::Record;
use mycelium_ram_core::{EpochId, Member};

use crate::effect::Frame;
use crate::guest::{Answer, Entry, Image, Request};
use crate::scenario::Scenario;

use reference::Reference;

/// What was seen of a run.
#[derive(Debug)]
pub struct Witness {
    pub(crate) history: BTreeMap<u64, (u64, Entry)>,
    pub(crate) livelock: bool,
    pub(crate) well_after: Option<u64>,
    pub(crate) resumed: Vec<(u64, Member, EpochId)>,
    pub(crate) broken: Vec<(u64, Member, String)>,
    pub(crate) unbounded: Vec<(u64, Member, String)>,
    answers: Vec<(u64, Member, Answer)>,
    voices: BTreeMap<Member, Voice>,
    delivered: Vec<(u64, Member, Request)>,
    ledger: Vec<(u64, Record)>,
    ended: BTreeMap<Member, u64>,
    names: BTreeMap<Member, u32>,
    contract: Contract,
}

/// When a process spoke on the clients' network.
#[derive(Clone, Copy, Debug)]
struct Voice {
    first: u64,
    announced: Option<u64>,
}

/// What the class of the run promises.
#[derive(Clone, Copy, Debug)]
struct Contract {
    survives: bool,
    prompt: bool,
    /// Longest round trip between nodes, in nanoseconds.
    round_trip: u64,
}

/// A guest image that is left at the end.
#[derive(Debug)]
pub struct Survivor {
    pub(crate) member: Member,
    pub(crate) pages: Image,
    pub(crate) state: Bytes,
}

/// What is left at the end of a run.
#[derive(Debug)]
pub struct Final {
    pub(crate) record: Record,
    pub(crate) active: Option<Survivor>,
    pub(crate) replicas: Vec<Survivor>,
    pub(crate) down_for_good: bool,
    pub(crate) unanswered: Vec<Request>,
    pub(crate) now: u64,
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name: the file in this folder.
    pub invariant: &'static str,
    /// What was seen.
    pub explanation: String,
}

impl Violation {
    fn new(invariant: &'static str, explanation: String) -> Self {
        Self { invariant, explanation }
    }
}

impl Witness {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            history: BTreeMap::new(),
            livelock: false,
            well_after: None,
            resumed: Vec::new(),
            broken: Vec::new(),
            unbounded: Vec::new(),
            answers: Vec::new(),
            voices: BTreeMap::new(),
            delivered: Vec::new(),
            ledger: Vec::new(),
            ended: BTreeMap::new(),
            names: BTreeMap::new(),
            contract: Contract {
                survives: scenario.survives,
                prompt: scenario.prompt,
                round_trip: scenario.paths.round_trip(),
            },
        }
    }

    pub(crate) fn started(&mut self, member: Member, pid: u32) {
        self.names.insert(member, pid);
    }

    pub(crate) fn ended(&mut self, member: Member, now: u64) {
        self.ended.insert(member, now);
    }

    pub(crate) fn record(&mut self, now: u64, record: &Record) {
        self.ledger.push((now, record.clone()));
    }

    pub(crate) fn delivered(&mut self, now: u64, to: Member, request: Request) {
        self.delivered.push((now, to, request));
    }

    pub(crate) fn emitted(&mut self, now: u64, from: Member, frame: Frame) {
        let voice = self.voices.entry(from).or_insert(Voice { first: now, announced: None });
        match frame {
            Frame::Answer(answer) => self.answers.push((now, from, answer)),
            Frame::Announce => _ = voice.announced.get_or_insert(now),
        }
    }

    fn name(&self, member: Member) -> String {
        self.names.get(&member).map_or_else(|| member.to_string(), |pid| format!("process {pid}"))
    }

    /// The lease under which an active spoke then, if it did not have to wait for the commit.
    fn lease_at(&self, from: Member, now: u64) -> Option<Lease> {
        let mine = |(at, r): &&(u64, Record)| *at <= now && r.active == from;
        match self.ledger.iter().rfind(mine)?.1.mode {
            Mode::Sync => None,
            Mode::Async(lease) => Some(lease),
        }
    }

    /// Answers that had left and are not part of the history that went on, where that is allowed.
    fn lost_in_async<'a>(
        &'a self,
        reference: &'a Reference,
    ) -> impl Iterator<Item = &'a (u64, Member, Answer)> {
        let lost = |(at, from, answer): &&(u64, Member, Answer)| {
            let there = reference.answers.get(&answer.step).is_some_and(|a| a.history == answer.history);
            !there && self.lease_at(*from, *at).is_some()
        };
        self.answers.iter().filter(lost)
    }

    /// The generation in which a process was the active, and since when the record says so.
    fn reign(&self, member: Member) -> Option<(u64, u64)> {
        self.ledger.iter().find(|(_, r)| r.active == member).map(|(at, r)| (*at, r.generation.0))
    }

    /// Answers that somebody has heard and that are no part of what went on, as `async` allows.
    #[must_use]
    pub fn count_lost_in_async(&self, last: &Final) -> u64 {
        self.lost_in_async(&Reference::of(self, last)).count() as u64
    }

    /// Judges the run: the first invariant that does not hold, the most telling first.
    ///
    /// # Errors
    /// The violation.
    pub fn judge(&self, last: &Final) -> Result<(), Violation> {
        let reference = Reference::of(self, last);
        one_active::check(self)?;
        one_record::check(self, last)?;
        whole_epochs::check(self, last)?;
        output_commit::check(self, last, &reference)?;
        nothing_lost::check(self, last, &reference)?;
        exposure::check(self, &reference)?;
        degrade_in_open::check(self)?;
        prompt_replay::check(self)?;
        bounded::check(self)?;
        liveness::check(self, last)
    }
}

/// Milliseconds for people.
fn ms(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000)
}
