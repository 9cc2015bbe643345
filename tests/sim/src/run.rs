//! One seed, one run, one verdict.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::oracle::Violation;
use crate::scenario::{Class, Scenario};
use crate::stats::Stats;
use crate::trace::Trace;
use crate::world::World;

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Its class.
    pub class: Class,
    /// What it exercised.
    pub stats: Stats,
    /// The trace.
    pub trace: Trace,
    /// The invariant that does not hold, if any.
    pub violation: Option<Violation>,
}

/// Runs a seed. The verdict depends on the seed alone; `keep_lines` keeps the trace for reading.
#[must_use]
pub fn run(seed: u64, keep_lines: bool) -> Outcome {
    let scenario = Scenario::draw(seed);
    let class = scenario.class;
    let judged = catch_unwind(AssertUnwindSafe(|| {
        let (witness, last, mut stats, trace) = World::new(scenario, seed, Trace::new(keep_lines)).run();
        stats.runs = 1;
        stats.down = u64::from(last.down_for_good);
        stats.lost_in_async = witness.count_lost_in_async(&last);
        (witness.judge(&last).err(), stats, trace)
    }));
    match judged {
        Ok((violation, stats, trace)) => Outcome { seed, class, stats, trace, violation },
        Err(panic) => Outcome {
            seed,
            class,
            stats: Stats { runs: 1, ..Stats::default() },
            trace: Trace::default(),
            violation: Some(Violation { invariant: "no_panic", explanation: message(panic.as_ref()) }),
        },
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
