//! `sim`: runs the simulator over many seeds, replays one, or proves that deliberate faults are found.

mod args;
mod report;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use mycelium_sim::hunt::{Fault, Hunt, fault_name, hunt, run_with};

use args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    // A panic in a run is a violation like any other and is reported as one.
    std::panic::set_hook(Box::new(|_| {}));
    let faults = args.sabotage.as_ref().map(|f| &f.0[..]);
    let good = match (faults, args.seed) {
        (None, None) => green(&args),
        (None, Some(seed)) => replay(&args, seed, None),
        (Some([fault]), Some(seed)) => replay(&args, seed, Some(*fault)),
        (Some(faults), _) => prove(&args, faults),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one seed and shows what happened.
fn replay(args: &Args, seed: u64, fault: Option<Fault>) -> bool {
    let outcome = run_with(seed, true, fault);
    let lines: Vec<_> = outcome.trace.lines().collect();
    let from = if args.trace { 0 } else { lines.len().saturating_sub(report::LAST_LINES) };
    if !args.json {
        lines[from..].iter().for_each(|line| println!("{line}"));
    }
    report::one(args, &outcome);
    outcome.violation.is_none()
}

/// Runs many seeds; every one must keep the promises.
fn green(args: &Args) -> bool {
    let found = hunt_with_bar(args, None, "seeds");
    report::classes(args, &found);
    let Some(outcome) = &found.violation else { return true };
    let again = run_with(outcome.seed, true, None);
    report::violation(args, &again, None);
    false
}

/// Runs seeds under each fault until one is noticed.
fn prove(args: &Args, faults: &[Fault]) -> bool {
    let mut table = BTreeMap::new();
    for fault in faults {
        let found = hunt_with_bar(args, Some(*fault), fault_name(*fault));
        if let (Some(outcome), [_]) = (&found.violation, faults) {
            report::violation(args, &run_with(outcome.seed, true, Some(*fault)), Some(*fault));
        }
        report::found(args, *fault, found.violation.as_ref(), found.seeds);
        table.insert(fault_name(*fault).to_owned(), found.violation.is_some());
    }
    let missed: Vec<_> = table.iter().filter(|(_, found)| !**found).map(|(name, _)| name.as_str()).collect();
    if !missed.is_empty() {
        eprintln!("not found within {} seeds: {}", args.seeds, missed.join(", "));
    }
    missed.is_empty()
}

fn hunt_with_bar(args: &Args, fault: Option<Fault>, what: &str) -> Hunt {
    let total = args.picked().count() as u64;
    let shown = std::io::stderr().is_terminal() && !args.json;
    let last = AtomicU64::new(0);
    let found = hunt(args.picked(), args.threads(), fault, |done| {
        let percent = done * 100 / total.max(1);
        if shown && last.swap(percent, Ordering::Relaxed) != percent {
            let bar = "#".repeat(usize::try_from(percent / 4).unwrap_or(0));
            eprint!("\r{what:<28} [{bar:<25}] {done}/{total} ");
        }
    });
    if shown {
        eprint!("\r{:80}\r", "");
    }
    found
}
