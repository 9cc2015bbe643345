//! The simulated world: virtual time, nodes, paths, switch, arbiter and clients around the processes.

mod arbiter;
mod clients;
mod effects;
mod faults;
mod finish;
mod group;
mod operator;
mod queue;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mycelium_ram_core::record::Record;
use mycelium_ram_core::settle::Reply;
use mycelium_ram_core::{Incarnation, Member, NodeId, VmId};

use crate::clock::{Clock, MS, US};
use crate::effect::{ConnId, Effect, Frame, Input, Timer};
use crate::guest::{Answer, Request};
use crate::limits;
use crate::net::{Cuts, Way};
use crate::oracle::{Final, Witness};
use crate::process::{Process, Role};
use crate::rng::{Rng, mix};
use crate::scenario::Scenario;
use crate::stats::Stats;
use crate::trace::Trace;

use arbiter::Arbiter;
use clients::Client;
use faults::Armed;
use group::Asked;
use queue::Queue;

/// A process of the run, in the order of their starts.
pub(crate) type Pid = u32;

/// What happens at a time.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Input(Pid, Input),
    Bundle { conn: ConnId, way: Way, to: Pid, frame: Bytes },
    Datagram { way: Way, to: Pid, frame: Bytes },
    AtArbiter(Asked),
    Replicated { term: u64 },
    FromArbiter { node: usize, to: Pid, reply: Reply },
    AtSwitch { node: usize, frame: Frame },
    ToGuest(Request),
    AtNode(usize, Request),
    ToClient(Answer),
    ClientSends(u8),
    ClientAsksAgain(u8, u64),
    Wanted(usize),
    Start(usize),
    Resume(Pid),
    Unhang(Pid),
    Strike(usize),
    Mend(Vec<Way>),
    ConnDies(ConnId),
    ArbiterUp,
    Heal,
    Check,
    End,
}

/// What a stopped process finds when it goes on.
#[derive(Debug)]
enum Deferred {
    Input(Input),
    Effects(Vec<Effect>),
}

#[derive(Debug)]
struct Proc {
    process: Process,
    node: usize,
    stalled: bool,
    deferred: Vec<Deferred>,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    clock: Clock,
    runs: Option<Pid>,
}

#[derive(Debug)]
struct Conn {
    ends: [Pid; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Faults,
    Settling { since: u64 },
    Draining { since: u64 },
    Resting,
    Over,
}

/// A run in progress.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    vm: VmId,
    now: u64,
    queue: Queue,
    rng: Rng,
    nodes: Vec<Node>,
    procs: BTreeMap<Pid, Proc>,
    pids: BTreeMap<Member, Pid>,
    next_pid: Pid,
    conns: BTreeMap<ConnId, Conn>,
    cuts: Cuts,
    parked: Vec<Event>,
    switch: Option<usize>,
    /// Nodes on which the operator wants no replica.
    unwanted: BTreeSet<usize>,
    arbiter: Arbiter,
    clients: Vec<Client>,
    armed: Vec<Armed>,
    phase: Phase,
    witness: Witness,
    stats: Stats,
    trace: Trace,
}

impl World {
    /// The world of a scenario, before anything has happened.
    #[must_use]
    pub fn new(scenario: Scenario, seed: u64, trace: Trace) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0x0077_6f72_6c64));
        let node = |n: u8, rng: &mut Rng| Node { id: NodeId([n; 32]), clock: Clock::random(rng), runs: None };
        let count = u8::try_from(scenario.nodes).expect("a few nodes");
        let nodes = (0..count).map(|n| node(n, &mut rng)).collect();
        let armed = scenario.faults.iter().map(|f| Armed::new(*f)).collect();
        let mut world = Self {
            vm: VmId::new("vm").expect("a plain name"),
            now: 0,
            queue: Queue::default(),
            rng,
            nodes,
            procs: BTreeMap::new(),
            pids: BTreeMap::new(),
            next_pid: 0,
            conns: BTreeMap::new(),
            cuts: Cuts::default(),
            parked: Vec::new(),
            switch: None,
            unwanted: scenario.unwanted.iter().copied().collect(),
            arbiter: Arbiter::new(scenario.replicates),
            clients: Vec::new(),
            armed,
            phase: Phase::Faults,
            witness: Witness::new(&scenario),
            stats: Stats::default(),
            trace,
            scenario,
        };
        world.set_up();
        world
    }

    fn set_up(&mut self) {
        self.start_process(0, true);
        for node in 1..self.nodes.len() {
            let at = self.rng.below(60 * MS);
            self.after(at, Event::Start(node));
        }
        for client in 0..self.scenario.clients {
            self.clients.push(Client::default());
            let at = self.rng.below(20 * MS);
            self.after(at, Event::ClientSends(client));
        }
        for index in 0..self.armed.len() {
            if let Some(at) = self.armed[index].time() {
                self.after(at, Event::Strike(index));
            }
        }
        self.after(self.scenario.heal_at, Event::Heal);
    }

    /// Runs to the end and hands over what was seen.
    #[must_use]
    pub fn run(mut self) -> (Witness, Final, Stats, Trace) {
        while self.phase != Phase::Over
            && let Some((at, order, event)) = self.queue.pop()
        {
            self.now = at;
            self.stats.events += 1;
            self.trace.fold(mix(at ^ order << 40));
            if self.stats.events > limits::EVENTS {
                self.witness.livelock = true;
                break;
            }
            self.happen(event);
        }
        let last = self.last_state();
        self.stats.virtual_ms = self.now / MS;
        self.stats.generations = last.record.generation.0;
        (self.witness, last, self.stats, self.trace)
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.queue.push(self.now + delay, event);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        self.trace.note(self.now, line);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Input(pid, input) => self.deliver(pid, input),
            Event::Bundle { .. } | Event::Datagram { .. } => self.arrive(event),
            Event::AtArbiter(asked) => self.at_arbiter(asked),
            Event::Replicated { term } => self.replicated(term),
            Event::FromArbiter { node, to, reply } => {
                if self.cuts.passes(Way::FromArbiter(node)) {
                    self.deliver(to, Input::Arbiter(reply));
                }
            }
            Event::AtSwitch { node, frame } => self.at_switch(node, frame),
            Event::ToGuest(request) => self.forward(request),
            Event::AtNode(node, request) => self.at_node(node, request),
            Event::ToClient(answer) => self.answered(answer),
            Event::ClientSends(client) => self.client_sends(client),
            Event::ClientAsksAgain(client, seq) => self.client_asks_again(client, seq),
            Event::Wanted(node) => self.wanted(node),
            Event::Start(node) => self.start_process(node, false),
            Event::Resume(pid) => self.resume(pid),
            Event::Unhang(pid) => self.set_hung(pid, false),
            Event::Strike(index) => self.strike_timed(index),
            Event::Mend(ways) => self.mend(&ways),
            Event::ConnDies(conn) => self.conn_dies(conn),
            Event::ArbiterUp => self.arbiter_up(),
            Event::Heal => self.heal(),
            Event::Check => self.check(),
            Event::End => self.phase = Phase::Over,
        }
    }

    fn start_process(&mut self, node: usize, boots: bool) {
        if self.nodes[node].runs.is_some() {
            return;
        }
        let pid = self.next_pid;
        self.next_pid += 1;
        let incarnation = Incarnation(self.rng.word() >> 24 << 8 | u64::from(pid));
        let Node { id, clock, .. } = self.nodes[node];
        let member = Member { node: id, incarnation };
        let mut process =
            Process::passive(member, self.vm.clone(), clock, self.scenario.costs, self.rng.fork());
        let mut fx = Vec::new();
        if boots {
            let record: Record = self.arbiter.create(&self.vm, member, self.scenario.policy);
            self.witness.record(self.now, &record);
            process.boot(self.now, record, &mut fx);
            self.switch = Some(node);
        }
        process.start(&mut fx);
        self.nodes[node].runs = Some(pid);
        self.pids.insert(member, pid);
        self.witness.started(member, pid);
        self.note(|| format!("node {node} starts process {pid}"));
        self.procs.insert(pid, Proc { process, node, stalled: false, deferred: Vec::new() });
        self.apply(pid, fx);
    }

    /// A process is gone. `told` says whether its peers see their connections end soon.
    fn end_process(&mut self, pid: Pid, told: bool, back_after: u64, why: &str) {
        let Some(gone) = self.procs.remove(&pid) else { return };
        self.note(|| format!("process {pid} of node {} ends: {why}", gone.node));
        self.witness.ended(gone.process.member, self.now);
        self.nodes[gone.node].runs = None;
        let conns: Vec<_> =
            self.conns.iter().filter(|(_, c)| c.ends.contains(&pid)).map(|(id, _)| *id).collect();
        for conn in conns {
            // What was sent before the end still arrives.
            let close = if told { self.rng.below(5 * MS) } else { self.rng.between((200, 800)) * MS };
            self.after(self.scenario.paths.round_trip() + close, Event::ConnDies(conn));
        }
        self.after(back_after, Event::Start(gone.node));
    }

    /// Hands an input to a process, now or when it goes on.
    fn deliver(&mut self, pid: Pid, input: Input) {
        let input = match input {
            Input::Timer(Timer::Discover) => Input::Peers(self.passive_peers(pid)),
            other => other,
        };
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        if proc.stalled {
            proc.deferred.push(Deferred::Input(input));
            return;
        }
        if matches!(input, Input::Peers(_)) {
            self.handle(pid, Input::Timer(Timer::Discover));
        }
        self.handle(pid, input);
    }

    fn handle(&mut self, pid: Pid, mut input: Input) {
        if let Input::Peers(peers) = &mut input {
            peers.retain(|member| self.wants(*member));
        }
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        if let (Input::Frame(request), Role::Active(_)) = (&input, &proc.process.role) {
            self.witness.delivered(self.now, proc.process.member, *request);
        }
        let mut fx = Vec::new();
        proc.process.handle(self.now, input, &mut fx);
        self.apply(pid, fx);
    }

    /// What the control plane tells an active: the other nodes' passive processes.
    fn passive_peers(&self, pid: Pid) -> Vec<Member> {
        let other = |p: &&Proc| !matches!(p.process.role, Role::Active(_) | Role::Ended);
        let here = self.procs.get(&pid).map(|p| p.node);
        let peers = self.procs.values().filter(other).filter(|p| Some(p.node) != here);
        peers.map(|p| p.process.member).collect()
    }

    fn at_switch(&mut self, node: usize, frame: Frame) {
        if self.switch != Some(node) {
            self.note(|| format!("switch: the guest is at node {node}"));
            self.switch = Some(node);
        }
        let wire = self.rng.between((10 * US, 40 * US));
        match frame {
            Frame::Answer(answer) => self.after(wire, Event::ToClient(answer)),
            Frame::Announce => {
                let others =
                    (0..self.nodes.len()).filter(|n| *n != node && self.cuts.passes(Way::Clients(*n)));
                let reached: Vec<_> = others.filter_map(|n| self.nodes[n].runs).collect();
                for pid in reached {
                    self.after(wire, Event::Input(pid, Input::Foreign));
                }
            }
        }
    }

    fn forward(&mut self, request: Request) {
        if let Some(node) = self.switch {
            let wire = self.rng.between((10 * US, 40 * US));
            self.after(wire, Event::AtNode(node, request));
        }
    }

    fn at_node(&mut self, node: usize, request: Request) {
        if let (true, Some(pid)) = (self.cuts.passes(Way::Clients(node)), self.nodes[node].runs) {
            self.deliver(pid, Input::Frame(request));
        }
    }
}
