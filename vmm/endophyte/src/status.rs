//! `endophyte status`: how a VM is doing, from its run folder or from its process.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use endophyte_api::{InfoRequest, Role, VmInfo};
use serde_json::json;

use crate::exit::{Exit, Failure, OrExit};
use crate::outlet::say;
use crate::rundir::{self, RunDir};

pub(crate) fn from_folder(run_dir: &Path, json: bool) -> Result<ExitCode, Exit> {
    let status = RunDir::existing(run_dir).status().or_exit(Failure::Spec)?;
    if json {
        say(&serde_json::to_string(&status)?);
    } else {
        let age = mycelium_ram::clock::wall().0.saturating_sub(status.updated_wall_ns);
        say(&rundir::describe(&status, Duration::from_nanos(age)));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn from_process(socket: &Path, json: bool) -> Result<ExitCode, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let info = runtime.block_on(ask(socket)).or_exit(Failure::Peer)?;
    say(&if json { as_json(&info).to_string() } else { in_words(&info) });
    Ok(ExitCode::SUCCESS)
}

async fn ask(socket: &Path) -> anyhow::Result<VmInfo> {
    let reached = endophyte_api::connect(socket).await;
    let mut vm = reached.with_context(|| {
        format!("no VM answers at {}; is this the --api of a VM that runs?", socket.display())
    })?;
    let info = vm.info(InfoRequest {}).await;
    Ok(info.map_err(|status| anyhow!("{}: {}", status.code(), status.message()))?.into_inner())
}

fn role(info: &VmInfo) -> &'static str {
    match info.role() {
        Role::Run => "run",
        Role::Active => "active",
        Role::Passive => "passive",
        Role::Unspecified => "unknown",
    }
}

fn as_json(info: &VmInfo) -> serde_json::Value {
    let replica = |r: &endophyte_api::Replica| json!({"ticket": r.ticket, "node": r.node, "state": r.state, "last_trouble": r.last_trouble});
    let device = |d: &endophyte_api::Device| json!({"kind": d.kind, "name": d.name, "slot": d.slot, "removable": d.removable});
    let figures = info.figures.unwrap_or_default();
    json!({
        "name": info.name, "role": role(info), "state": info.state, "reason": info.reason,
        "protected": info.protected, "generation": info.generation, "paused": info.paused,
        "incarnation": info.incarnation, "pid": info.pid, "node": info.node,
        "replicas": info.replicas.iter().map(replica).collect::<Vec<_>>(),
        "listen": info.listen, "ticket": info.ticket, "allowed": info.allowed, "listed": info.listed,
        "staged_epoch": info.staged_epoch, "console_bytes": info.console_bytes,
        "epochs_committed": figures.epochs_committed,
        "disk_bytes": figures.disk_bytes, "disk_left_bytes": figures.disk_left_bytes,
        "pause_us": {"p50": figures.pause_us_p50, "p99": figures.pause_us_p99},
        "output_delay_us": {"p50": figures.output_delay_us_p50, "p99": figures.output_delay_us_p99},
        "devices": info.devices.iter().map(device).collect::<Vec<_>>(), "device_tables": info.device_tables,
        "last_trouble": info.last_trouble, "ram_bytes": info.ram_bytes, "vcpus": info.vcpus,
    })
}

fn in_words(info: &VmInfo) -> String {
    let mut text = format!("{} as {}: {}", info.name, role(info), info.state);
    if !info.reason.is_empty() {
        text += &format!(" ({})", info.reason);
    }
    if info.paused {
        text += ", paused";
    }
    if !info.ticket.is_empty() {
        text += &format!("\n  listens as {}, newest whole epoch {}", info.ticket, info.staged_epoch);
    }
    for replica in &info.replicas {
        text += &format!("\n  replica {}: {}", replica.ticket, replica.state);
        if !replica.last_trouble.is_empty() {
            text += &format!(" ({})", replica.last_trouble);
        }
    }
    for device in &info.devices {
        text += &format!("\n  slot {}: {} {}", device.slot, device.kind, device.name);
    }
    if !info.last_trouble.is_empty() {
        text += &format!("\n  last trouble: {}", info.last_trouble);
    }
    text
}
