//! Having a VM go on at its replica.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use endophyte_api::HandOverRequest;
use mycelium_api::FailoverVmRequest;
use serde_json::json;

use super::target::Target;
use crate::output::plain;

/// How it goes on.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --planned it is a rehearsal of the real thing: the process is killed, and the replica takes over once it has \
    heard nothing for as long as --detect-ms says. With --planned the guest stands for some milliseconds only, and goes on here if the \
    replica does not take it. Either way the VM is then protected again by a new replica, if there is a node for one."
)]
pub(crate) struct FailoverArgs {
    #[command(flatten)]
    target: Target,
    /// Hand the guest over instead of killing it: for maintenance of its host.
    #[arg(long, required_unless_present = "name")]
    planned: bool,
    /// With --planned: to the replica on the node of this key, not to any in sync.
    #[arg(long, value_name = "KEY", requires = "planned")]
    to: Option<String>,
}

pub(super) async fn failover(args: &FailoverArgs) -> Result<()> {
    if args.planned { hand_over(args).await } else { kill(args).await }
}

async fn kill(FailoverArgs { target, .. }: &FailoverArgs) -> Result<()> {
    let name = target.name().context("a process without a daemon is killed by kill(1)")?.to_owned();
    let mut daemon = target.asking.daemon().await?;
    let ask = FailoverVmRequest { name: name.clone() };
    let reply = daemon.failover_vm(ask).await.map_err(|s| plain(&s))?;
    target.asking.show(&reply.into_inner(), |r| format!("{name} goes on on {}", r.node_name))
}

async fn hand_over(args: &FailoverArgs) -> Result<()> {
    let mut vm = args.target.process().await?;
    let begun = Instant::now();
    let ask = HandOverRequest { node: args.to.clone().unwrap_or_default() };
    let reply = vm.client.hand_over(ask).await.map_err(|s| plain(&s))?.into_inner();
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    let shown = json!({ "vm": vm.name, "node": reply.node, "generation": reply.generation, "took_ms": ms });
    args.target.asking.show(&shown, |_| {
        let name = &vm.name;
        format!(
            "{name} runs on node {} as generation {}, handed over in {ms:.1} ms",
            reply.node, reply.generation
        )
    })
}
