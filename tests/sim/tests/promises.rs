//! A slice of what `cargo xtask sim` runs: seeds of every class keep every promise, and a seed means one run.

use mycelium_sim::hunt::hunt;
use mycelium_sim::run;
use mycelium_sim::scenario::Class;

#[test]
fn two_hundred_seeds_keep_every_promise() {
    let found = hunt(0..200, 2, None, |_| {});
    if let Some(outcome) = found.violation {
        panic!("seed {} ({}): {:?}", outcome.seed, outcome.class.name(), outcome.violation);
    }
    assert_eq!(found.classes.len(), Class::ALL.len());
    let takeovers: u64 = found.classes.values().map(|s| s.takeovers).sum();
    assert!(takeovers > 60, "only {takeovers} takeovers: the faults do not strike");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [0, 3, 7, 11, 12, 14, 29] {
        let (first, again) = (run(seed, false), run(seed, true));
        assert_eq!(first.trace.hash(), again.trace.hash(), "seed {seed}");
        assert_eq!(first.stats, again.stats);
        assert_ne!(first.trace.hash(), run(seed + 100, false).trace.hash());
    }
}
