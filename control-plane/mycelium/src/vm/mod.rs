//! `mycelium vm`: VMs on the nodes of the network.

mod console;
mod failover;
mod list;
mod migrate;
mod orders;
mod plug;
mod policy;
mod snapshot;
mod start;
mod target;

use anyhow::Result;
use clap::{Args, Subcommand};
use mycelium_api::{ProtectVmRequest, RemoveVmRequest, StopVmRequest};

use failover::FailoverArgs;
pub(crate) use list::listed;
use list::{describe, inspect, list};
use migrate::MigrateArgs;
use orders::BalloonArgs;
use plug::{AttachCommand, DetachArgs};
use policy::PolicyArgs;
use snapshot::SnapshotArgs;
use start::{RestoreArgs, RunArgs};
use target::Target;

use crate::output::{Asking, block_on, plain};

/// What can be done with VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Start a VM on this node.
    Run(RunArgs),
    /// Start a VM on this node where a snapshot was taken of it.
    Restore(RestoreArgs),
    /// List the network's VMs, replicas included.
    List(#[command(flatten)] Asking),
    /// Show one VM: where it runs, where its replica is, and why there.
    Inspect(NameArgs),
    /// Keep a replica of a VM of this node on another one, or give it up (--off).
    Protect(ProtectArgs),
    /// Have a VM's replica take over: by killing its process on this node, or by a handover (--planned). Nothing acknowledged is
    /// lost.
    Failover(FailoverArgs),
    /// Show or set, while it runs, what a VM's speed is worth against its clients' waiting.
    Policy(PolicyArgs),
    /// Have a VM of this node stand still until it is resumed.
    Pause(Target),
    /// Let a paused VM go on.
    Resume(Target),
    /// Save a VM of this node, memory and devices but not its disks, to a file.
    Snapshot(SnapshotArgs),
    /// Move a VM without protection to another process, of this host or another, while it runs.
    Migrate(MigrateArgs),
    /// Press the power button: the guest switches itself off.
    PowerButton(Target),
    /// Take memory from a guest for the host, or give it back. The spec must have `balloon = true`.
    Balloon(BalloonArgs),
    /// Give a running VM without protection another disk or network card.
    #[command(subcommand)]
    Attach(AttachCommand),
    /// Have a running VM let go of a disk or network card.
    Detach(DetachArgs),
    /// Print a VM's counters as Prometheus reads them.
    Metrics(Target),
    /// End a VM of this node for good, its replica too. The guest is not asked: see power-button.
    Stop(NameArgs),
    /// Forget a VM that has ended.
    Rm(RmArgs),
    /// Print what a VM of this node has written to its console.
    Logs(LogsArgs),
    /// Sit at the console of a VM of this node; Ctrl-] leaves.
    Console(Target),
    /// Print what has happened to a VM on this node, one JSON object a line.
    Events(LogsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    #[command(flatten)]
    asking: Asking,
    /// The VM's name.
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ProtectArgs {
    #[command(flatten)]
    asking: Asking,
    /// The VM's name.
    name: String,
    /// Give the replica up.
    #[arg(long)]
    off: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    what: NameArgs,
    /// Also the images of its disks that this node made to hold a replica. After a takeover they hold what the guest wrote last.
    #[arg(long)]
    discard_disks: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    asking: Asking,
    /// The VM's name.
    name: String,
    /// Go on as more comes.
    #[arg(long, short)]
    follow: bool,
}

pub(crate) fn run(command: VmCommand) -> Result<()> {
    block_on(async {
        match command {
            VmCommand::Run(args) => start::run(&args).await,
            VmCommand::Restore(args) => start::restore(&args).await,
            VmCommand::List(asking) => {
                let vms = list(&asking).await?;
                asking.show(&vms, |vms| listed(vms))
            }
            VmCommand::Inspect(args) => inspect(&args).await,
            VmCommand::Protect(ProtectArgs { asking, name, off }) => {
                let ask = ProtectVmRequest { name, protect: !off };
                let vm = asking.daemon().await?.protect_vm(ask).await.map_err(|s| plain(&s))?;
                asking.show(&vm.into_inner(), describe)
            }
            VmCommand::Failover(args) => failover::failover(&args).await,
            VmCommand::Stop(NameArgs { asking, name }) => {
                let vm =
                    asking.daemon().await?.stop_vm(StopVmRequest { name }).await.map_err(|s| plain(&s))?;
                asking.show(&vm.into_inner(), describe)
            }
            VmCommand::Rm(RmArgs { what: NameArgs { asking, name }, discard_disks }) => {
                let ask = RemoveVmRequest { name: name.clone(), discard_disks };
                asking.daemon().await?.remove_vm(ask).await.map_err(|s| plain(&s))?;
                asking.show(&serde_json::json!({ "removed": name }), |_| format!("{name} is forgotten"))
            }
            VmCommand::Policy(args) => policy::policy(&args).await,
            VmCommand::Pause(target) => orders::pause(&target).await,
            VmCommand::Resume(target) => orders::resume(&target).await,
            VmCommand::Snapshot(args) => snapshot::snapshot(&args).await,
            VmCommand::Migrate(args) => migrate::migrate(&args).await,
            VmCommand::PowerButton(target) => orders::power_button(&target).await,
            VmCommand::Balloon(args) => orders::balloon(&args).await,
            VmCommand::Attach(command) => plug::attach(&command).await,
            VmCommand::Detach(args) => plug::detach(&args).await,
            VmCommand::Metrics(target) => orders::metrics(&target).await,
            VmCommand::Logs(args) => console::print_file(&args, "serial.log").await,
            VmCommand::Events(args) => console::print_file(&args, "events.jsonl").await,
            VmCommand::Console(target) => console::console(&target).await,
        }
    })
}
