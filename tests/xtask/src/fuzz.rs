//! `cargo xtask fuzz`: every decoder, by libFuzzer, on the stable toolchain.
//!
//! What `cargo fuzz` asks of a nightly compiler are its sanitizers. The coverage counters that guide libFuzzer come from an
//! LLVM pass that plain code generation flags switch on.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::build::{TARGET, target_folder};
use crate::sh::{cargo, must, status};
use crate::tools::{self, GXX};

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Time for each decoder.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only these decoders.
    #[arg(long)]
    target: Vec<String>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Do not search: take into the committed corpus what earlier runs found to add coverage.
    #[arg(long, conflicts_with = "json")]
    minimise: bool,
    /// Do not search: replay the committed corpus, in the ordinary build.
    #[arg(long, conflicts_with_all = ["json", "minimise"])]
    replay: bool,
    /// Replay these inputs only.
    #[arg(requires = "replay")]
    files: Vec<PathBuf>,
}

/// Counters at every edge, their places, and the operands of comparisons; and the cfg that links libFuzzer. Not static as
/// everything else: libFuzzer needs the dynamic C++ library.
const FLAGS: &str = "--cfg guided -C target-feature=-crt-static -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table -C llvm-args=-sanitizer-coverage-trace-compares";

pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let mut command = if args.replay { replay(args) } else { guided(args)? };
    for target in &args.target {
        command.args(["--target", target]);
    }
    Ok(if status(&mut command)?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn replay(args: &FuzzArgs) -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "-p", "mycelium-fuzz", "--", "replay"]).args(&args.files);
    command
}

/// In a folder of its own, so that the ordinary build stays warm.
fn guided(args: &FuzzArgs) -> Result<Command> {
    tools::ensure(&[GXX])?;
    let folder = target_folder()?.join("guided");
    let mut build = cargo();
    build.args(["build", "--quiet", "-p", "mycelium-fuzz", "--target-dir"]).arg(&folder);
    must(build.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", FLAGS))?;
    let mut command = Command::new(folder.join(TARGET).join("debug/mycelium-fuzz"));
    if args.minimise {
        command.arg("minimise");
    } else {
        command.args(["run", "--seconds", &args.seconds.to_string()]);
    }
    if args.json {
        command.arg("--json");
    }
    command.arg("--work").arg(folder.join("fuzz"));
    Ok(command)
}
