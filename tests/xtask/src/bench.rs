//! `cargo xtask bench`: figures as JSON lines, from repeated runs of the real thing.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{build, tools};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value_t = What::Takeover)]
    what: What,
    /// Runs per fault.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    repeats: u64,
    /// First seed; each run has its own.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object per figure instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The parts of a takeover under load, for each fault, by `mycelium demo`.
    Takeover,
    /// Forming a network, its arbiter, and pods against runc, by real daemons and a real containerd.
    Slice,
}

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
    if args.what == What::Slice {
        return slice(args.json);
    }
    tools::ensure(&[tools::GCC])?;
    let built = build::programs()?;
    let mut good = true;
    for fault in FAULTS {
        let mut verdicts = Vec::new();
        for n in 0..args.repeats {
            let seed = (args.seed + n).to_string();
            eprintln!("{fault}: run {} of {}, seed {seed}", n + 1, args.repeats);
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
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let figure: Value = serde_json::from_str(line)?;
        good &= figure["met"] == true;
        if as_json { println!("{line}") } else { println!("{}", row(&figure)) }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(figure: &Value) -> String {
    let ours = |key: &str| figure["ours"][key].as_f64().unwrap_or(f64::NAN);
    let text = |key: &str| figure[key].as_str().unwrap_or_default();
    let peer =
        figure["ratio"].as_f64().map_or_else(String::new, |r| format!("  {r:.2} of {}", text("peer_name")));
    format!(
        "{:<18} p50 {:>8.2}  p99 {:>8.2}  max {:>8.2} {:<4} n {:>4}  goal {}: {}{peer}",
        text("figure"),
        ours("p50"),
        ours("p99"),
        ours("max"),
        text("unit"),
        ours("n"),
        text("goal"),
        if figure["met"] == true { "met" } else { "NOT MET" }
    )
}
