//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::targets::{ALL, Target};
use crate::{minimise, replay, run};

/// Throws bytes at every decoder.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Search for inputs that fail, guided by coverage.
    Run(run::RunArgs),
    /// Replay seeds and committed corpus, or single inputs.
    Replay(replay::ReplayArgs),
    /// Take into the committed corpus what was found to add coverage.
    Minimise(minimise::MinimiseArgs),
    /// Replay in this process: what the other commands start.
    #[command(hide = true)]
    Inputs {
        /// The decoder.
        target: String,
        /// Instead of seeds and corpus.
        files: Vec<PathBuf>,
    },
}

/// Which decoders.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// Only these decoders.
    #[arg(long = "target")]
    names: Vec<String>,
}

impl Choice {
    /// Those chosen, or all.
    pub(crate) fn targets(&self) -> Result<Vec<&'static Target>> {
        if self.names.is_empty() {
            return Ok(ALL.iter().collect());
        }
        self.names.iter().map(|name| named(name)).collect()
    }
}

/// The decoder of that name.
pub(crate) fn named(name: &str) -> Result<&'static Target> {
    Target::find(name).with_context(|| {
        let known: Vec<_> = ALL.iter().map(|target| target.name).collect();
        format!("there is no target {name}; there are {}", known.join(", "))
    })
}

/// Does what the arguments say; success is a search or replay without findings.
pub(crate) fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mycelium-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> Result<bool> {
    match command {
        Command::Run(_) | Command::Minimise(_) if !cfg!(guided) => {
            bail!("this build counts no coverage and can only replay; use `cargo xtask fuzz`")
        }
        Command::Run(args) => run::run(&args),
        Command::Minimise(args) => minimise::minimise(&args),
        Command::Replay(args) => replay::replay(&args),
        Command::Inputs { target, files } => replay::inputs(named(&target)?, &files).map(|()| true),
    }
}
