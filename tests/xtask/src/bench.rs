//! `cargo xtask bench`: figures as JSON lines, from repeated runs of the real thing.

mod harness;

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use bench_figures::Figure;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{build, tools};
use harness::{HarnessArgs, REPLICATION, VMM};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value_t = What::Takeover)]
    what: What,
    /// Takeover: runs per fault. Replication, vmm: rounds in which everybody has a turn. The bench knows how many if not given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeats: Option<u64>,
    /// Takeover: first seed; each run has its own.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object per figure instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    harness: HarnessArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The parts of a takeover under load, for each fault, by `mycelium demo`.
    Takeover,
    /// Forming a network, its arbiter, and pods against runc, by real daemons and a real containerd.
    Slice,
    /// What protection costs a guest: against none, against stop-and-copy, and QEMU, by `replication-bench`.
    Replication,
    /// Our VMM against QEMU's microvm: start, memory, network, disk and restore of the same guest, by `vmm-bench`.
    Vmm,
}

/// Runs per fault.
const REPEATS: u64 = 5;
const FAULTS: [&str; 3] = ["kill", "stop", "link"];
/// Figure, and where it stands in a demo's verdict.
const FIGURES: [(&str, &str); 7] = [
    ("detect", "/failover_ms/detect"),
    ("arbitrate", "/failover_ms/arbitrate"),
    ("resume", "/failover_ms/resume"),
    ("first_output", "/failover_ms/first_output"),
    ("server_gap", "/failover_ms/server_gap"),
    ("client_gap", "/failover_ms/client_gap"),
    ("lost_or_repeated", "/lost_acked_ops"),
];

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match args.what {
        What::Takeover => takeover(args),
        What::Slice => slice(args.json),
        What::Replication => harness::run(&REPLICATION, &args.harness, args.repeats, args.json),
        What::Vmm => harness::run(&VMM, &args.harness, args.repeats, args.json),
    }
}

fn takeover(args: &BenchArgs) -> Result<ExitCode> {
    let repeats = args.repeats.unwrap_or(REPEATS);
    tools::ensure(&[tools::GCC])?;
    let built = build::programs()?;
    let mut good = true;
    for fault in FAULTS {
        let mut verdicts = Vec::new();
        for n in 0..repeats {
            let seed = (args.seed + n).to_string();
            eprintln!("{fault}: run {} of {repeats}, seed {seed}", n + 1);
            let demo = ["demo", "--json", "--fault", fault, "--seed", &seed];
            let output = Command::new(built.program("mycelium")).args(demo).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let last = text.lines().last().with_context(|| {
                format!("the demo ended without a verdict: {}", String::from_utf8_lossy(&output.stderr))
            })?;
            good &= output.status.success();
            verdicts.push(serde_json::from_str::<Value>(last)?);
        }
        report(fault, &verdicts, args.json)?;
    }
    if !good {
        bail!("at least one run was not as promised");
    }
    Ok(ExitCode::SUCCESS)
}

fn report(fault: &str, verdicts: &[Value], as_json: bool) -> Result<()> {
    for (figure, place) in FIGURES {
        let values = verdicts.iter().filter_map(|v| v.pointer(place).and_then(Value::as_f64));
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(p50), Some(max)) = (values.get(values.len() / 2), values.last()) else {
            bail!("no run of fault {fault} has a figure {figure}");
        };
        if as_json {
            let ours = json!({ "p50": p50, "max": max, "n": values.len() });
            let name = format!("takeover.{figure}.{fault}");
            println!(
                "{}",
                json!({ "figure": name, "unit": "ms", "better": "lower", "ours": ours, "peer": null })
            );
        } else {
            println!("{fault:<5} {figure:<17} p50 {p50:>8.2}  max {max:>8.2}  n {}", values.len());
        }
    }
    Ok(())
}

/// Runs the slice's own measuring program; as a table unless JSON is wanted.
fn slice(as_json: bool) -> Result<ExitCode> {
    tools::ensure(&tools::ALL)?;
    let built = build::programs_and_tests()?;
    let mut measure = Command::new(built.program("slice-figures"));
    let output = measure.env("MYCELIUM_PROGRAMS", &built.folder).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut good = output.status.success();
    if !as_json {
        println!("{}", bench_figures::heading());
    }
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let figure: Figure = serde_json::from_str(line)?;
        good &= figure.met;
        if as_json { println!("{line}") } else { println!("{}", bench_figures::row(&figure)) }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
