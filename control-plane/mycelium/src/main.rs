//! `mycelium`: the command line of the Digital Mycelium Network.
//!
//! Exit codes: 0 as wanted, 1 not as wanted or unexpected, 2 wrong usage, 130 interrupted.

mod arbiter;
mod image;
mod network;
mod node;
mod output;
mod shim;
mod vm;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use mycelium_demo::DemoOptions;

/// Keeps virtual machines running when their hosts die.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "A first look: mycelium demo. A network of nodes: docs/network.md. Pods: docs/kubernetes.md."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See a protected VM survive the loss of its host.
    Demo(DemoOptions),
    /// Make, join and look at the network of nodes.
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Run this node's daemon, and look at the network's nodes.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Run and protect VMs on the nodes of the network.
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Build, look at and convert what VMs boot from.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Install the containerd runtime that makes pods VMs.
    #[command(subcommand)]
    Shim(shim::ShimCommand),
    /// Run or ask the arbiter, which decides who runs a VM.
    #[command(subcommand)]
    Arbiter(arbiter::ArbiterCommand),
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Raft says many times a second that a node is gone; `mycelium network status` says it once.
    let quiet = "warn,openraft=off";
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet.into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(filter)
        .init();
    let result = match cli.command {
        Command::Demo(options) => demo(&options),
        Command::Network(command) => network::run(command).map(|()| ExitCode::SUCCESS),
        Command::Node(command) => node::run(command).map(|()| ExitCode::SUCCESS),
        Command::Vm(command) => vm::run(command).map(|()| ExitCode::SUCCESS),
        Command::Image(command) => image::run(command).map(|()| ExitCode::SUCCESS),
        Command::Shim(command) => shim::run(&command).map(|()| ExitCode::SUCCESS),
        Command::Arbiter(command) => arbiter::run(command).map(|()| ExitCode::SUCCESS),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "mycelium", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        if let Some(mycelium_images::ImageError::Interrupted) = error.downcast_ref() {
            eprintln!("{error}");
            return ExitCode::from(130);
        }
        eprintln!("mycelium: {error:#}");
        ExitCode::FAILURE
    })
}

fn demo(options: &DemoOptions) -> Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let verdict = match mycelium_demo::run(options, &interrupted) {
        Err(_) if interrupted.load(Ordering::Relaxed) => {
            eprintln!("interrupted; nothing is left behind");
            return Ok(ExitCode::from(130));
        }
        result => result?,
    };
    if options.json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        println!("{}", verdict.in_words());
    }
    Ok(if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
