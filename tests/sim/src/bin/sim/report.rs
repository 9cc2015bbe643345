//! Printing, for people and as JSON.

use mycelium_sim::Outcome;
use mycelium_sim::hunt::{Fault, Hunt, fault_name};
use mycelium_sim::stats::Stats;
use serde_json::json;

use crate::args::Args;

/// Lines of trace shown with a violation.
pub(crate) const LAST_LINES: usize = 60;

pub(crate) fn classes(args: &Args, found: &Hunt) {
    let mut all = Stats::default();
    if !args.json {
        println!(
            "{:<14}{:>6}{:>9}{:>10}{:>10}{:>11}{:>9}{:>9}{:>10}{:>8}{:>7}{:>9}{:>6}",
            "class",
            "runs",
            "virtual",
            "epochs",
            "outputs",
            "takeovers",
            "refused",
            "degrades",
            "dismissed",
            "handed",
            "lost",
            "leaders",
            "down"
        );
    }
    for (class, stats) in &found.classes {
        row(args, class.name(), stats);
        all += *stats;
    }
    row(args, "all", &all);
}

fn row(args: &Args, name: &str, s: &Stats) {
    if args.json {
        println!(
            "{}",
            json!({"class": name, "runs": s.runs, "virtual_ms": s.virtual_ms, "events": s.events,
                "epochs": s.epochs, "outputs": s.outputs, "takeovers": s.takeovers,
                "takeovers_failed": s.takeovers_failed, "degrades": s.degrades, "dismissals": s.dismissals,
                "hand_overs": s.hand_overs, "handed_over": s.handed_over, "modes_set": s.modes_set,
                "lost_in_async": s.lost_in_async, "leaders_lost": s.leaders_lost,
                "swaps_lost": s.swaps_lost, "swaps_kept": s.swaps_kept, "down": s.down})
        );
        return;
    }
    println!(
        "{name:<14}{:>6}{:>8}s{:>10}{:>10}{:>11}{:>9}{:>9}{:>10}{:>8}{:>7}{:>9}{:>6}",
        s.runs,
        s.virtual_ms / 1000,
        s.epochs,
        s.outputs,
        s.takeovers,
        s.takeovers_failed,
        s.degrades,
        s.dismissals,
        s.handed_over,
        s.lost_in_async,
        s.leaders_lost,
        s.down
    );
}

/// The verdict on one run.
pub(crate) fn one(args: &Args, outcome: &Outcome) {
    let violation = outcome.violation.as_ref();
    if args.json {
        println!(
            "{}",
            json!({"seed": outcome.seed, "class": outcome.class.name(), "trace_hash": format!("{:016x}", outcome.trace.hash()),
                "invariant": violation.map(|v| v.invariant), "explanation": violation.map(|v| &v.explanation)})
        );
        return;
    }
    println!("seed {} ({}), trace {:016x}", outcome.seed, outcome.class.name(), outcome.trace.hash());
    match violation {
        Some(v) => println!("VIOLATION of {}: {}", v.invariant, v.explanation),
        None => println!("every promise was kept"),
    }
}

/// A violation with what led to it and how to see it again.
pub(crate) fn violation(args: &Args, outcome: &Outcome, fault: Option<Fault>) {
    if args.json {
        return one(args, outcome);
    }
    let lines: Vec<_> = outcome.trace.lines().collect();
    println!("\nthe last {} of {} lines of the trace:", lines.len().min(LAST_LINES), lines.len());
    lines[lines.len().saturating_sub(LAST_LINES)..].iter().for_each(|line| println!("{line}"));
    println!();
    one(args, outcome);
    let fault = fault.map(|f| format!(" --sabotage {}", fault_name(f))).unwrap_or_default();
    println!("see all of it: cargo xtask sim --seed {} --trace{fault}", outcome.seed);
}

/// Whether a deliberate fault was noticed.
pub(crate) fn found(args: &Args, fault: Fault, noticed: Option<&Outcome>, seeds: u64) {
    let name = fault_name(fault);
    let seed = noticed.map(|o| o.seed);
    let invariant = noticed.and_then(|o| o.violation.as_ref()).map(|v| v.invariant);
    if args.json {
        println!("{}", json!({"sabotage": name, "seed": seed, "invariant": invariant, "seeds_run": seeds}));
        return;
    }
    match (seed, invariant) {
        (Some(seed), Some(invariant)) => println!("{name:<28} seed {seed:<6} {invariant}"),
        _ => println!("{name:<28} NOT FOUND in {seeds} seeds"),
    }
}
