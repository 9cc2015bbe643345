//! `cargo xtask`: everything developers, CI and first-time users run.

mod bench;
mod build;
mod demo;
mod doctor;
mod fuzz;
mod sh;
mod sim;
mod suites;
mod tools;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer, CI and demo commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the programs and the native guest; prints the folder they are in.
    Build,
    /// Build everything and play the demo: a protected VM loses its host. Options go to `mycelium demo` (try --help).
    #[command(disable_help_flag = true)]
    Demo {
        /// Options of `mycelium demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Run the tests: a slice of every suite, or whole suites by name.
    Test(suites::TestArgs),
    /// Check what CI checks without running tests: format, lints, dependencies, docs. Changes nothing.
    Verify,
    /// Format, and apply the lints' suggestions.
    Fix,
    /// Measure.
    Bench(bench::BenchArgs),
    /// Explore the failover protocol by seeds.
    Sim(sim::SimArgs),
    /// Throw bytes at every decoder, guided by coverage.
    Fuzz(fuzz::FuzzArgs),
    /// Say what this machine has and lacks for building, testing and the demo.
    Doctor,
}

fn main() -> ExitCode {
    let result = run(Cli::parse().command);
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Build => {
            println!("{}", build::programs()?.folder.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo { options } => demo::run(&options),
        Command::Test(args) => suites::run(&args),
        Command::Verify => verify::verify(),
        Command::Fix => verify::fix(),
        Command::Bench(args) => bench::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Doctor => doctor::run(),
    }
}
