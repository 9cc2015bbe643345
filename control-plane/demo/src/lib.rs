//! A protected VM loses its host while clients work with it: the whole promise in one run, with nothing simulated.
//!
//! [`run`] is the plot. The world it plays in is made of namespaces on this machine's KVM (`native.rs`), of the same with a
//! network of node daemons in them (`network.rs`), or of two emulated hosts (`linux.rs`); client, captures and verdict are
//! the same.

mod arbiter;
mod capture;
mod client;
mod clocks;
mod linux;
mod native;
mod needs;
mod network;
mod node;
mod options;
mod programs;
mod resp;
mod shell;
mod story;
mod tail;
mod takeover;
mod verdict;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mycelium_ram::clock;
use mycelium_ram::core::Time;
use mycelium_ram::drill::{self, Phase};
use mycelium_ram::events::{Event, Stamped, Stats};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use clocks::GuestClocks;
pub use network::{NetworkVerdict, NodeVerdict, Reprotected, SecondTakeover};
pub use options::{DemoOptions, Fault, GuestKind};
pub use takeover::FailoverMs;
pub use verdict::{Connections, Verdict};

use client::{Client, Shared};
use clocks::ClockWatch;
use linux::LinuxWorld;
use native::NativeWorld;
use network::NetworkWorld;
use programs::Programs;
use resp::{Connection, Reply};
use story::Story;
use takeover::Loss;
use verdict::Evidence;
use world::World;

/// How often the timelines are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often they are looked at for a phase, and for how long.
const PHASE_LOOK: Duration = Duration::from_millis(1);
const PHASE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the guest has to do without what is not the active, and how many requests it must answer in that time.
const OUTAGE: Duration = Duration::from_secs(1);
const WORKS_ON: u64 = 50;
/// Readings of the guest's clocks before the load and after it.
const IDLE_READINGS: usize = 20;

/// Plays the demo. `interrupted` ends it early, cleanly.
///
/// # Errors
/// When the world cannot be made or something does not happen in time; the message says what, with the nodes' logs.
pub fn run(options: &DemoOptions, interrupted: &Arc<AtomicBool>) -> Result<Verdict> {
    options.check().map_err(anyhow::Error::msg)?;
    needs::ensure(options)?;
    let programs = Programs::find(options)?;
    let folder = tempfile::Builder::new().prefix("mycelium-demo-").tempdir()?;
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(1..1_000_000));
    let mut play = Play {
        story: Story::begin(),
        nodes: Vec::new(),
        losses: Vec::new(),
        interrupted: interrupted.clone(),
        seed,
        rng: ChaCha8Rng::seed_from_u64(seed),
    };
    play.story.say(&format!("seed {seed}: --seed {seed} repeats the moment of each loss"));
    let dir = folder.path();
    let result = match options.guest {
        GuestKind::Native if options.network => NetworkWorld::start(&programs, dir, &play.story, interrupted)
            .and_then(|world| play.perform(world, options)),
        GuestKind::Native => {
            NativeWorld::start(options, &programs, dir).and_then(|world| play.perform(world, options))
        }
        GuestKind::Linux => LinuxWorld::start(options, &programs, dir, &play.story, interrupted)
            .and_then(|world| play.perform(world, options)),
    };
    play.story.end();
    if options.keep {
        let kept = folder.keep();
        eprintln!("logs, timelines and captures are in {}", kept.display());
    }
    result
}

/// What strikes, and in which phase of an epoch if not in any.
type Strike = (Fault, Option<Phase>);

struct Play {
    story: Story,
    /// What has happened on each node, and which were lost.
    nodes: Vec<Vec<Stamped>>,
    losses: Vec<Loss>,
    interrupted: Arc<AtomicBool>,
    seed: u64,
    rng: ChaCha8Rng,
}

impl Play {
    fn perform(&mut self, mut world: impl World, options: &DemoOptions) -> Result<Verdict> {
        let result = self.acts(&mut world, options);
        result.map_err(|error| {
            let logs = world.logs();
            error.context(format!("seed {}; the nodes' last words:\n{}\nfailed", self.seed, logs.trim_end()))
        })
    }

    fn acts(&mut self, world: &mut impl World, options: &DemoOptions) -> Result<Verdict> {
        let pace = world.pace();
        self.nodes = vec![Vec::new(); world.names().len()];
        self.until(world, pace.start, "the guest to be protected", |play, _| play.is_protected())?;
        self.wait_for_guest(world, pace.start)?;
        let clock_watch = ClockWatch::start(world.server(), pace.reply);
        self.read_clocks(world, &clock_watch, pace)?;
        let client = Client::start(world.server(), options.connections.into(), pace.reply, pace.think);
        if options.fault.is_loss() {
            self.take_over(world, &client.shared, (options.fault, options.phase))?;
        } else {
            self.go_through(world, &client.shared, (options.fault, options.phase))?;
            self.take_over(world, &client.shared, (Fault::Kill, None))?;
        }
        while self.losses.len() + 1 < self.nodes.len() {
            self.protect_again(world, pace)?;
            self.take_over(world, &client.shared, (Fault::Kill, None))?;
        }
        if matches!(options.fault, Fault::Stop | Fault::Link) {
            world.revive(0, options.fault)?;
            self.story.mark(clock::now().0, "node A is back; it must not say anything");
            self.watch(world, &client.shared, pace.after)?;
        }
        let wire_bytes = world.wire_bytes();
        let findings = client.finish()?;
        self.read_clocks(world, &clock_watch, pace)?;
        let clocks = clock_watch.finish().context("the clocks could not be read to the end")?;
        self.look(world)?;
        let exit_of_first = world.exit_of(0);
        let evidence = Evidence {
            guest: options.guest,
            kvm: world.kvm(),
            fault: options.fault,
            phase: options.phase.map(Phase::name),
            seed: self.seed,
            began: self.story.began,
            names: world.names(),
            nodes: std::mem::take(&mut self.nodes),
            console: world.console(self.active()),
            losses: std::mem::take(&mut self.losses),
            findings,
            clocks,
            captures: world.captures()?,
            wall_offset: clock::wall().0 - clock::now().0,
            wire_bytes,
            exit_of_first,
            chronicle: world.chronicle(),
        };
        evidence.judge().context("no node was lost")
    }

    /// Loads the guest, loses the node it runs on, and works on with the one that takes over.
    fn take_over(&mut self, world: &mut impl World, shared: &Shared, loss: Strike) -> Result<()> {
        let (pace, names) = (world.pace(), world.names());
        self.load(world, shared)?;
        let (from, to) = (self.active(), self.replica().context("the replica is gone before the loss")?);
        let outstanding = shared.outstanding.load(Ordering::Relaxed);
        let at = self.strike(world, loss)?;
        let last = self.losses.last().map(|last| last.at);
        self.losses.push(Loss { from, to, at, outstanding });
        let since =
            last.map_or(String::new(), |last| format!(", {:.1} s after the first", (at - last) as f64 / 1e9));
        let what = match loss.0 {
            Fault::HandOver => "hands the guest over".to_owned(),
            fault => format!("is lost ({}){since}", fault.name()),
        };
        self.story.lost(at);
        self.story.mark(at, &format!("node {} {what}; times count from here", names[from]));
        let what = format!("node {} to take over", names[to]);
        self.until(world, pace.start, &what, |play, _| play.resumed_at(to).is_some())?;
        self.go_on(world, shared)
    }

    /// Something goes wrong that is no reason to go elsewhere: the guest is served where it is, and protected again in the end.
    fn go_through(&mut self, world: &mut impl World, shared: &Shared, strike: Strike) -> Result<()> {
        let (pace, fault) = (world.pace(), strike.0);
        self.load(world, shared)?;
        let at = self.strike(world, strike)?;
        self.story.mark(at, &format!("{} is lost", fault.what_is_lost()));
        if fault == Fault::Replica {
            self.until(world, pace.start, "the record to let the replica go", |play, _| {
                !play.is_protected()
            })?;
        }
        let before = shared.acked.load(Ordering::Relaxed);
        self.watch(world, shared, OUTAGE)?;
        let meanwhile = shared.acked.load(Ordering::Relaxed) - before;
        self.story.mark(clock::now().0, &format!("{meanwhile} requests answered meanwhile; it comes back"));
        if meanwhile < WORKS_ON {
            bail!("only {meanwhile} requests were answered without {}", fault.what_is_lost());
        }
        world.revive(self.active(), fault)?;
        self.until(world, pace.start, "the guest to be protected again", |play, _| play.is_protected())
    }

    /// Strikes the active or what it depends on, in the phase of an epoch if there is one.
    fn strike(&mut self, world: &mut impl World, (fault, phase): Strike) -> Result<u64> {
        let active = self.active();
        let Some(phase) = phase else { return world.lose(active, fault) };
        world.hold_epoch(active)?;
        let deadline = clock::now() + PHASE_PATIENCE;
        let held = loop {
            self.look(world)?;
            let held = takeover::when(&self.nodes[active], |e| matches!(e, Event::Drill { .. }));
            if let Some(held) = held {
                break Time(held);
            }
            if clock::now() > deadline {
                bail!("no epoch was held while {}", phase.name());
            }
            std::thread::sleep(PHASE_LOOK);
        };
        let at = world.lose(active, fault)?;
        if Time(at) > held + drill::HOLD {
            bail!("the phase was over before the fault struck: is this machine very busy?");
        }
        Ok(at)
    }

    /// Waits until the next loss can be survived.
    fn protect_again(&mut self, world: &mut impl World, pace: world::Pace) -> Result<()> {
        let (active, names) = (self.active(), world.names());
        self.until(world, pace.start, "the guest to be protected again", |play, _| play.is_protected())?;
        let what = format!("those to vote who are left without node {}", names[active]);
        self.until(world, pace.start, &what, |_, world| world.decides_without(active))?;
        let text = format!("node {} may be lost now: who is left decides without it", names[active]);
        self.story.mark(clock::now().0, &text);
        Ok(())
    }

    /// The node the guest runs on, as far as the losses tell.
    fn active(&self) -> usize {
        self.losses.last().map_or(0, |loss| loss.to)
    }

    /// A node that has taken over although the active was not lost. What follows would be another story.
    fn took_over_early(&self) -> Option<usize> {
        let expected = |node: &usize| *node == self.active() || self.losses.iter().any(|l| l.from == *node);
        (0..self.nodes.len()).find(|node| !expected(node) && self.resumed_at(*node).is_some())
    }

    /// Events of the active since the guest runs there.
    fn reign(&self) -> impl DoubleEndedIterator<Item = &Event> {
        let active = self.active();
        let since = if self.losses.is_empty() { None } else { self.resumed_at(active) };
        let events = self.nodes[active].iter().filter(move |e| since.is_none_or(|since| e.t_ns >= since));
        events.map(|e| &e.event)
    }

    /// The node whose replica may take over.
    fn replica(&self) -> Option<usize> {
        let listed = |node: &usize| {
            self.nodes[*node].iter().rev().find_map(|e| match e.event {
                Event::Listed { listed } => Some(listed),
                _ => None,
            })
        };
        let gone = |node: &usize| *node == self.active() || self.losses.iter().any(|l| l.from == *node);
        (0..self.nodes.len()).filter(|node| !gone(node)).find(|node| listed(node) == Some(true))
    }

    fn is_protected(&self) -> bool {
        let state = self.reign().rev().find_map(|e| match e {
            Event::Protection { protected, .. } => Some(*protected),
            _ => None,
        });
        state == Some(true) && self.replica().is_some()
    }

    fn resumed_at(&self, node: usize) -> Option<u64> {
        takeover::resumed(&self.nodes[node])
    }

    /// The newest figures of the active.
    fn stats(&self) -> Stats {
        let mut newest = self.reign().rev();
        newest.find_map(|e| if let Event::Stats(s) = e { Some(*s) } else { None }).unwrap_or_default()
    }

    /// Takes note of what has happened, and tells it.
    fn look(&mut self, world: &mut impl World) -> Result<()> {
        let was_protected = self.is_protected();
        world.news().iter().for_each(|(at, text)| self.story.mark(*at, text));
        let mut ended = None;
        let names = world.names();
        for (node, name) in names.iter().enumerate() {
            for stamped in world.events(node)? {
                if let Some(words) = story::in_words(&stamped.event) {
                    self.story.mark(stamped.t_ns, &format!("node {name}: {words}"));
                }
                // No guest of the demo ends by itself; waiting for its replies would only hide why.
                if let Event::Guest { what } = &stamped.event {
                    ended = Some(format!("the guest ended on node {name}: {what}"));
                }
                self.nodes[node].push(stamped);
            }
        }
        self.story.settle();
        if let Some(loss) = self.losses.last()
            && !was_protected
            && self.is_protected()
        {
            let (now, from, to) =
                (clock::now().0, names[loss.from], names[self.replica().unwrap_or(loss.to)]);
            let after = (now - loss.at) as f64 / 1e9;
            let text = format!("protected again by node {to}, {after:.1} s after the loss of node {from}");
            self.story.mark(now, &text);
        }
        if let Some(ended) = ended {
            bail!("{ended}");
        }
        if let Some(early) = self.took_over_early() {
            let (early, active) = (names[early], names[self.active()]);
            bail!(
                "node {early} took over before node {active} was lost: a false alarm, is this machine very busy?"
            );
        }
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    fn until<W: World>(
        &mut self,
        world: &mut W,
        patience: Duration,
        what: &str,
        done: impl Fn(&Self, &W) -> bool,
    ) -> Result<()> {
        let deadline = clock::now() + patience;
        self.story.now(format!("waiting for {what}"));
        loop {
            self.look(world)?;
            if done(self, world) {
                return Ok(());
            }
            if clock::now() > deadline {
                bail!("waited {} s for {what}", patience.as_secs());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn wait_for_guest(&mut self, world: &mut impl World, patience: Duration) -> Result<()> {
        let server = world.server();
        let deadline = clock::now() + patience;
        loop {
            let pong = Connection::open(server, Duration::from_secs(2)).and_then(|mut c| c.ask(&[b"PING"]));
            if matches!(pong, Ok(Reply::Simple(_))) {
                return Ok(());
            }
            self.look(world)?;
            if clock::now() > deadline {
                bail!("the guest does not answer on {server}: {pong:?}");
            }
        }
    }

    /// Reads the clocks of a guest that has nothing else to do: only then is the way to it short.
    fn read_clocks(&mut self, world: &mut impl World, watch: &ClockWatch, pace: world::Pace) -> Result<()> {
        let wanted = watch.taken() + IDLE_READINGS;
        self.until(world, pace.reply, "readings of the guest's clocks", |_, _| {
            watch.taken() >= wanted || watch.is_over()
        })
    }

    /// Works until the moment of the loss, which the seed decides.
    fn load(&mut self, world: &mut impl World, shared: &Shared) -> Result<()> {
        let pace = world.pace();
        let (least, most) = pace.before_loss;
        let load_for = least + (most - least).mul_f64(self.rng.random::<f64>());
        let moment = clock::now() + load_for;
        let deadline = clock::now() + pace.start + most;
        let acked = || shared.acked.load(Ordering::Relaxed);
        let before = acked();
        let ready = |play: &Self| play.stats().committed > pace.epochs && acked() - before > pace.acks;
        while clock::now() < moment || !ready(self) {
            self.look(world)?;
            self.show(shared);
            if clock::now() > deadline {
                bail!("too slow: {} epochs, {} requests", self.stats().committed, acked() - before);
            }
            // The last wait ends at the drawn moment, not at the next look.
            std::thread::sleep(LOOK.min(moment.since(clock::now()).max(Duration::from_millis(1))));
        }
        Ok(())
    }

    fn show(&self, shared: &Shared) {
        let stats = self.stats();
        self.story.now(format!(
            "epoch {} committed, {} waiting | guest stopped {} us | output held {} us | {} MB sent | {} requests",
            stats.committed,
            stats.lag,
            stats.pause_us.p50,
            stats.output_delay_us.p50,
            stats.bytes / 1_000_000,
            shared.acked.load(Ordering::Relaxed)
        ));
    }

    /// Works on in the new generation.
    fn go_on(&mut self, world: &mut impl World, shared: &Shared) -> Result<()> {
        let pace = world.pace();
        let at_takeover = shared.acked.load(Ordering::Relaxed);
        self.watch(world, shared, pace.after)?;
        let deadline = clock::now() + pace.start;
        while shared.acked.load(Ordering::Relaxed) < at_takeover + pace.acks && clock::now() < deadline {
            self.watch(world, shared, LOOK)?;
        }
        Ok(())
    }

    fn watch(&mut self, world: &mut impl World, shared: &Shared, time: Duration) -> Result<()> {
        let until = clock::now() + time;
        while clock::now() < until {
            self.look(world)?;
            self.story.now(format!("{} requests acknowledged", shared.acked.load(Ordering::Relaxed)));
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
