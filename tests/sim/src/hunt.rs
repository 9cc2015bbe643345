//! Many seeds on all cores.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::run::{Outcome, run};
use crate::scenario::Class;
use crate::stats::Stats;

/// A deliberate fault of the core, by its name on command lines; without the feature `sabotage` there is none to choose.
#[cfg(feature = "sabotage")]
pub type Fault = mycelium_ram_core::sabotage::Sabotage;
/// A deliberate fault of the core; without the feature `sabotage` there is none.
#[cfg(not(feature = "sabotage"))]
pub type Fault = std::convert::Infallible;

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Hunt {
    /// Counts by class.
    pub classes: BTreeMap<Class, Stats>,
    /// The run with the lowest seed that violated an invariant.
    pub violation: Option<Outcome>,
    /// Seeds run.
    pub seeds: u64,
}

/// Runs the seeds on so many threads until one violates an invariant; `progress` hears how many are done. The seed
/// reported is the lowest of those that failed before the threads stopped.
pub fn hunt(
    seeds: impl Iterator<Item = u64> + Send,
    threads: usize,
    fault: Option<Fault>,
    progress: impl Fn(u64) + Sync,
) -> Hunt {
    let (seeds, stop) = (Mutex::new(seeds), AtomicBool::new(false));
    let found = Mutex::new(Hunt::default());
    let work = || {
        set_fault(fault);
        let next = || seeds.lock().expect("an iterator of numbers does not panic").next();
        while !stop.load(Ordering::Relaxed)
            && let Some(seed) = next()
        {
            let outcome = run(seed, false);
            stop.fetch_or(outcome.violation.is_some(), Ordering::Relaxed);
            let done = found.lock().expect("runs do not panic").add(outcome);
            progress(done);
        }
        set_fault(None);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    found.into_inner().expect("runs do not panic")
}

impl Hunt {
    fn add(&mut self, outcome: Outcome) -> u64 {
        *self.classes.entry(outcome.class).or_default() += outcome.stats;
        self.seeds += 1;
        let lower = self.violation.as_ref().is_none_or(|known| outcome.seed < known.seed);
        if outcome.violation.is_some() && lower {
            self.violation = Some(outcome);
        }
        self.seeds
    }
}

#[cfg(feature = "sabotage")]
fn set_fault(fault: Option<Fault>) {
    mycelium_ram_core::sabotage::set_sabotage(fault);
}

#[cfg(not(feature = "sabotage"))]
fn set_fault(_: Option<Fault>) {}

/// The name of a fault on command lines.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn fault_name(fault: Fault) -> &'static str {
    fault.name()
}

/// The name of a fault on command lines.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub fn fault_name(fault: Fault) -> &'static str {
    match fault {}
}

/// The faults that a name on the command line stands for: one, or `all`.
///
/// # Errors
/// Which names there are, or that this build has none.
#[cfg(feature = "sabotage")]
pub fn faults_named(name: &str) -> Result<Vec<Fault>, String> {
    if name == "all" { Ok(Fault::ALL.to_vec()) } else { name.parse().map(|fault| vec![fault]) }
}

/// The faults that a name on the command line stands for: one, or `all`.
///
/// # Errors
/// That this build has none.
#[cfg(not(feature = "sabotage"))]
pub fn faults_named(_: &str) -> Result<Vec<Fault>, String> {
    Err("this build has no deliberate faults; build it with the feature `sabotage`".to_owned())
}

/// Runs one seed under a deliberate fault, in this thread.
#[must_use]
pub fn run_with(seed: u64, keep_lines: bool, fault: Option<Fault>) -> Outcome {
    set_fault(fault);
    let outcome = run(seed, keep_lines);
    set_fault(None);
    outcome
}
