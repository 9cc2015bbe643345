//! `lab`: boots lab hosts to look around in, or to check that the lab works on this machine.

mod check;
mod prompt;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Whole Linux hosts with working KVM in emulated machines, joined by a private network")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot hosts joined by a lab network; then check them or take commands for them.
    Up(UpArgs),
    /// Fetch and unpack what hosts boot from.
    Fetch,
    /// List the programs the lab needs and whether they are there.
    Requirements,
}

#[derive(Debug, Args)]
struct UpArgs {
    /// How many hosts.
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    /// How many replication paths between them.
    #[arg(long, default_value_t = 2)]
    paths: usize,
    /// Memory of each host in MiB.
    #[arg(long, default_value_t = 1024)]
    memory_mib: u32,
    /// Check KVM, the network and netem, then end; exit code 1 when something does not work.
    #[arg(long)]
    check: bool,
    /// Keep consoles and outputs here; otherwise they go with the hosts.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Lay a file into every host, as PATH_INSIDE=SOURCE; it can be run there.
    #[arg(long = "file", value_parser = parse_file)]
    files: Vec<(String, PathBuf)>,
}

fn parse_file(text: &str) -> Result<(String, PathBuf), String> {
    let (inside, source) = text.split_once('=').ok_or("expected PATH_INSIDE=SOURCE")?;
    Ok((inside.to_owned(), source.into()))
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Up(args) => up::up(&args),
        Command::Fetch => up::fetch(),
        Command::Requirements => list_requirements(),
    };
    outcome.map_or_else(
        |error| {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn list_requirements() -> anyhow::Result<()> {
    for wanted in mycelium_lab::requirements::requirements() {
        let state = match (wanted.present(), wanted.optional) {
            (true, _) => "present",
            (false, true) => "absent, optional",
            (false, false) => "MISSING",
        };
        println!("{wanted}: {state}");
    }
    Ok(mycelium_lab::requirements::check()?)
}
