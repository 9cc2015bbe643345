//! What a running VM is told: to stand, to go on, to switch itself off, to give memory back.

use anyhow::Result;
use clap::Args;
use endophyte_api::{
    MetricsRequest, PauseRequest, PressPowerButtonRequest, ResumeRequest, SetBalloonRequest,
};
use mycelium_images::debian::parse_size;
use serde_json::json;

use super::target::Target;
use crate::output::{plain, say};

/// How much memory the balloon is to take.
#[derive(Debug, Args)]
pub(crate) struct BalloonArgs {
    #[command(flatten)]
    target: Target,
    /// Memory to take from the guest for the host, as 512M or 2G; 0 gives all back.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    take: u64,
}

pub(super) async fn pause(target: &Target) -> Result<()> {
    let mut vm = target.process().await?;
    vm.client.pause(PauseRequest {}).await.map_err(|s| plain(&s))?;
    done(target, &vm.name, "paused")
}

pub(super) async fn resume(target: &Target) -> Result<()> {
    let mut vm = target.process().await?;
    vm.client.resume(ResumeRequest {}).await.map_err(|s| plain(&s))?;
    done(target, &vm.name, "running")
}

pub(super) async fn power_button(target: &Target) -> Result<()> {
    let mut vm = target.process().await?;
    vm.client.press_power_button(PressPowerButtonRequest {}).await.map_err(|s| plain(&s))?;
    target.asking.show(&json!({ "vm": vm.name, "pressed": true }), |_| {
        format!("the power button of {} is pressed; its guest switches off in its own time", vm.name)
    })
}

pub(super) async fn balloon(args: &BalloonArgs) -> Result<()> {
    let mut vm = args.target.process().await?;
    vm.client.set_balloon(SetBalloonRequest { bytes: args.take }).await.map_err(|s| plain(&s))?;
    args.target.asking.show(&json!({ "vm": vm.name, "balloon_bytes": args.take }), |_| {
        let mib = args.take >> 20;
        format!("the balloon of {} shall hold {mib} MiB; `mycelium vm metrics` shows how far it is", vm.name)
    })
}

/// Prometheus' text is what is asked for, with --json too.
pub(super) async fn metrics(target: &Target) -> Result<()> {
    let mut vm = target.process().await?;
    let text = vm.client.metrics(MetricsRequest {}).await.map_err(|s| plain(&s))?.into_inner().text;
    if target.asking.json {
        return target.asking.show(&json!({ "vm": vm.name, "prometheus": text }), |_| String::new());
    }
    say(text.trim_end());
    Ok(())
}

fn done(target: &Target, name: &str, state: &str) -> Result<()> {
    target.asking.show(&json!({ "vm": name, "state": state }), |_| format!("{name}: {state}"))
}
