//! `endophyte`: runs one VM in this process, alone, or as one side of a protected pair.

mod active;
mod announce;
mod api;
mod cli;
mod confine;
mod console;
mod create;
mod desk;
mod exit;
mod guest;
mod limits;
mod metrics;
mod migrate;
mod node;
mod outlet;
mod parent;
mod passive;
mod plain;
mod plug;
mod replicas;
mod rundir;
mod session;
mod signals;
mod snapshot;
mod status;
mod wire;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use endophyte_vmm::doctor;
use rhizomorph_link::Identity;

#[cfg(feature = "fuzzing")]
pub use api::{fuzz_api, seeds_api};

use cli::{Cli, Command};
use exit::{Exit, Failure, OrExit};
use outlet::say;

/// The program: reads its arguments, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(filter)
        .init();
    dispatch(cli.command).unwrap_or_else(|exit| exit.report())
}

fn dispatch(command: Command) -> Result<ExitCode, Exit> {
    if command.process().is_some_and(|process| process.die_with_parent) {
        parent::die_with_parent().or_exit(Failure::Host)?;
    }
    match command {
        Command::Run(args) => plain::run(&args),
        Command::Active(args) => active::run(&args),
        Command::Passive(args) => passive::run(&args),
        Command::Keygen { out } => keygen(&out),
        Command::Key { file } => {
            say(&Identity::load(&file).or_exit(Failure::Spec)?.peer_key().to_string());
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor { json } => Ok(report_host(json)),
        Command::Status { run_dir: Some(dir), json, .. } => status::from_folder(&dir, json),
        Command::Status { api, json, .. } => status::from_process(&api.unwrap_or_default(), json),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "endophyte", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn keygen(out: &Path) -> Result<ExitCode, Exit> {
    let identity = Identity::generate().or_exit(Failure::Host)?;
    identity.save(out).or_exit(Failure::Spec)?;
    say(&identity.peer_key().to_string());
    Ok(ExitCode::SUCCESS)
}

fn report_host(json: bool) -> ExitCode {
    let mut report = doctor::examine();
    report.checks.extend(confine::checks());
    if json {
        say(&report.to_json());
    } else {
        say(report.to_string().trim_end());
    }
    if report.can_run_vms() { ExitCode::SUCCESS } else { ExitCode::from(4) }
}
