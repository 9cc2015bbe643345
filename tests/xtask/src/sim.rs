//! `cargo xtask sim`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::sh::{cargo, status};

#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Options of the simulator, for example: --seeds 2000, --seed 17 --trace, --sabotage all.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn run(args: &SimArgs) -> Result<ExitCode> {
    let mut command = cargo();
    command.args(["run", "--quiet", "-p", "mycelium-sim", "--bin", "sim"]);
    if args.options.iter().any(|option| option.starts_with("--sabotage")) {
        command.args(["--features", "sabotage"]);
    }
    let ended = status(command.arg("--").args(&args.options))?;
    Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
