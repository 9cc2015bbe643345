//! A protected VM loses its host while clients work with it: the whole promise in one run, with nothing simulated.
//!
//! [`run`] is the plot. The world it plays in is made of namespaces on this machine's KVM (`native.rs`) or of two emulated
//! hosts (`linux.rs`); client, captures and verdict are the same.

mod arbiter;
mod capture;
mod client;
mod clocks;
mod linux;
mod native;
mod needs;
mod options;
mod programs;
mod resp;
mod shell;
mod story;
mod tail;
mod verdict;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mycelium_ram::clock;
use mycelium_ram::events::{Event, Stamped};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use clocks::GuestClocks;
pub use options::{DemoOptions, Fault, GuestKind};
pub use verdict::{Connections, FailoverMs, Verdict};

use client::{Client, Shared};
use clocks::ClockWatch;
use linux::LinuxWorld;
use native::NativeWorld;
use programs::Programs;
use resp::{Connection, Reply};
use story::Story;
use verdict::Evidence;
use world::{Side, World};

/// How often the timelines are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Readings of the guest's clocks before the load and after it.
const IDLE_READINGS: usize = 20;

/// Plays the demo. `interrupted` ends it early, cleanly.
///
/// # Errors
/// When the world cannot be made or something does not happen in time; the message says what, with the nodes' logs.
pub fn run(options: &DemoOptions, interrupted: &Arc<AtomicBool>) -> Result<Verdict> {
    needs::ensure(options.guest)?;
    let programs = Programs::find(options)?;
    let folder = tempfile::Builder::new().prefix("mycelium-demo-").tempdir()?;
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(1..1_000_000));
    let mut play = Play {
        story: Story::begin(),
        a: Vec::new(),
        b: Vec::new(),
        interrupted: interrupted.clone(),
        seed,
        rng: ChaCha8Rng::seed_from_u64(seed),
    };
    let result = match options.guest {
        GuestKind::Native => {
            start_native(options, &programs, folder.path()).and_then(|w| play.perform(w, options))
        }
        GuestKind::Linux => LinuxWorld::start(options, &programs, folder.path(), &play.story, interrupted)
            .and_then(|w| play.perform(w, options)),
    };
    play.story.end();
    if options.keep {
        let kept = folder.keep();
        eprintln!("logs, timelines and captures are in {}", kept.display());
    }
    result
}

fn start_native(options: &DemoOptions, programs: &Programs, folder: &Path) -> Result<NativeWorld> {
    NativeWorld::start(options, programs, folder)
}

struct Play {
    story: Story,
    a: Vec<Stamped>,
    b: Vec<Stamped>,
    interrupted: Arc<AtomicBool>,
    seed: u64,
    rng: ChaCha8Rng,
}

impl Play {
    fn perform(&mut self, mut world: impl World, options: &DemoOptions) -> Result<Verdict> {
        let result = self.acts(&mut world, options);
        result.map_err(|error| {
            error.context(format!("seed {}; the nodes' last words:\n{}", self.seed, world.logs()))
        })
    }

    fn acts(&mut self, world: &mut impl World, options: &DemoOptions) -> Result<Verdict> {
        let pace = world.pace();
        self.until(world, pace.start, "the guest to be protected", |play| play.is_protected())?;
        self.wait_for_guest(world, pace.start)?;
        let clock_watch = ClockWatch::start(world.server(), pace.reply);
        self.read_clocks(world, &clock_watch, pace)?;
        let client = Client::start(world.server(), options.connections.into(), pace.reply, pace.think);
        self.load(world, &client.shared, pace)?;
        let outstanding = client.shared.outstanding.load(Ordering::Relaxed);
        let lost_at = world.lose(options.fault)?;
        self.story.lost(lost_at);
        self.story.mark(lost_at, &format!("NODE A IS LOST ({:?})", options.fault).to_lowercase());
        self.until(world, pace.start, "node B to take over", |play| play.resumed_at().is_some())?;
        self.go_on(world, &client.shared, pace)?;
        world.revive(options.fault)?;
        if options.fault != Fault::Kill {
            self.story.mark(clock::now().0, "node A is back; it must not say anything");
            self.watch(world, &client.shared, pace.after)?;
        }
        let wire_bytes = world.wire_bytes();
        let findings = client.finish()?;
        self.read_clocks(world, &clock_watch, pace)?;
        let clocks = clock_watch.finish().context("the clocks could not be read to the end")?;
        self.look(world)?;
        let exit_of_a = world.exit_of_a();
        let evidence = Evidence {
            guest: options.guest,
            kvm: world.kvm(),
            fault: options.fault,
            seed: self.seed,
            lost_at,
            outstanding,
            a: std::mem::take(&mut self.a),
            b: std::mem::take(&mut self.b),
            findings,
            clocks,
            console: world.console(Side::B),
            captures: world.captures()?,
            wall_offset: clock::wall().0 - clock::now().0,
            wire_bytes,
            exit_of_a,
        };
        Ok(evidence.judge())
    }

    fn is_protected(&self) -> bool {
        let state = self.a.iter().rev().find_map(|e| match &e.event {
            Event::Protection { protected, .. } => Some(*protected),
            _ => None,
        });
        let listed = self.b.iter().any(|e| matches!(e.event, Event::Listed { listed: true }));
        state == Some(true) && listed
    }

    fn resumed_at(&self) -> Option<u64> {
        self.b.iter().find(|e| matches!(e.event, Event::Resumed { .. })).map(|e| e.t_ns)
    }

    fn committed(&self) -> u64 {
        let stats =
            self.a.iter().rev().find_map(|e| if let Event::Stats(s) = &e.event { Some(s) } else { None });
        stats.map_or(0, |s| s.committed)
    }

    /// Takes note of what has happened on both nodes.
    fn look(&mut self, world: &mut impl World) -> Result<()> {
        for side in Side::BOTH {
            let events = world.events(side)?;
            events.iter().for_each(|event| self.story.tell(side, event));
            // No guest of the demo ends by itself; waiting for its replies would only hide why.
            if let Some(what) = events.iter().find_map(|e| match &e.event {
                Event::Guest { what } => Some(what),
                _ => None,
            }) {
                bail!("the guest ended on node {side:?}: {what}");
            }
            if side == Side::A { self.a.extend(events) } else { self.b.extend(events) }
        }
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    fn until(
        &mut self,
        world: &mut impl World,
        patience: Duration,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let deadline = clock::now() + patience;
        self.story.now(format!("waiting for {what}"));
        loop {
            self.look(world)?;
            if done(self) {
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
        self.until(world, pace.reply, "readings of the guest's clocks", |_| {
            watch.taken() >= wanted || watch.is_over()
        })
    }

    /// Works until the moment of the loss, which the seed decides.
    fn load(&mut self, world: &mut impl World, shared: &Shared, pace: world::Pace) -> Result<()> {
        let (least, most) = pace.before_loss;
        let load_for = least + (most - least).mul_f64(self.rng.random::<f64>());
        let moment = clock::now() + load_for;
        let deadline = clock::now() + pace.start + most;
        let ready =
            |play: &Self| play.committed() > pace.epochs && shared.acked.load(Ordering::Relaxed) > pace.acks;
        while clock::now() < moment || !ready(self) {
            self.look(world)?;
            self.show(shared);
            if clock::now() > deadline {
                bail!(
                    "too slow: {} epochs, {} requests",
                    self.committed(),
                    shared.acked.load(Ordering::Relaxed)
                );
            }
            // The last wait ends at the drawn moment, not at the next look.
            std::thread::sleep(LOOK.min(moment.since(clock::now()).max(Duration::from_millis(1))));
        }
        Ok(())
    }

    fn show(&self, shared: &Shared) {
        let stats =
            self.a.iter().rev().find_map(|e| if let Event::Stats(s) = &e.event { Some(*s) } else { None });
        let stats = stats.unwrap_or_default();
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
    fn go_on(&mut self, world: &mut impl World, shared: &Shared, pace: world::Pace) -> Result<()> {
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
