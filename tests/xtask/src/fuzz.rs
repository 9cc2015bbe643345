//! `cargo xtask fuzz`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::sh::{cargo, status};

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Time for each decoder.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only these decoders.
    #[arg(long)]
    target: Vec<String>,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let mut command = cargo();
    command.args(["run", "--quiet", "-p", "mycelium-fuzz", "--"]);
    command.args(["--seconds", &args.seconds.to_string()]);
    for target in &args.target {
        command.args(["--target", target]);
    }
    Ok(if status(&mut command)?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
