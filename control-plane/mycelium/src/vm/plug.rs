//! Disks and network cards that come and go while their VM runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use endophyte_api::{AttachDiskRequest, AttachNetRequest, AttachResponse, DetachRequest};
use serde_json::json;

use super::target::Target;
use crate::output::plain;

/// What is attached.
#[derive(Debug, Subcommand)]
pub(crate) enum AttachCommand {
    /// A disk: an image file or a block device within the VM's reach.
    Disk(AttachDiskArgs),
    /// A network card, on a tap of this node.
    Net(AttachNetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AttachDiskArgs {
    #[command(flatten)]
    target: Target,
    /// Image file or block device.
    #[arg(long, value_name = "FILE")]
    path: PathBuf,
    /// raw or qcow2; by default what the file's name ends in.
    #[arg(long)]
    format: Option<String>,
    /// What the guest knows it by, and what it is detached by.
    #[arg(long, value_name = "NAME")]
    serial: Option<String>,
    /// The guest cannot write.
    #[arg(long)]
    readonly: bool,
    /// writeback (default) or direct: past the host's page cache.
    #[arg(long)]
    cache: Option<String>,
    /// Most requests per second.
    #[arg(long)]
    iops: Option<u32>,
    /// Most bytes per second.
    #[arg(long, value_name = "BYTES")]
    bytes_per_s: Option<u64>,
    /// PCI slot, 1 to 27; the lowest free one by default.
    #[arg(long)]
    slot: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachNetArgs {
    #[command(flatten)]
    target: Target,
    /// The tap, or fd:N of the VM's process. By name, the process must have been started with --attach-taps.
    #[arg(long)]
    tap: String,
    /// The card's address.
    #[arg(long)]
    mac: String,
    /// Pairs of queues, for a tap made with multi_queue.
    #[arg(long)]
    queues: Option<u16>,
    /// Most bytes per second, each direction.
    #[arg(long, value_name = "BYTES")]
    bytes_per_s: Option<u64>,
    /// Most frames per second, each direction.
    #[arg(long, value_name = "FRAMES")]
    packets_per_s: Option<u64>,
    /// PCI slot, 1 to 27; the lowest free one by default.
    #[arg(long)]
    slot: Option<u16>,
}

/// Which device is detached, of which VM.
#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The device: a disk's serial number, a card's tap or address, or slot:N.
    #[arg(long, value_name = "NAME")]
    device: String,
    #[command(flatten)]
    target: Target,
    /// How long to wait for the guest.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    timeout: u32,
}

pub(super) async fn attach(command: &AttachCommand) -> Result<()> {
    match command {
        AttachCommand::Disk(args) => {
            let mut vm = args.target.process().await?;
            let ask = AttachDiskRequest { table: args.table()? };
            let reply = vm.client.attach_disk(ask).await.map_err(|s| plain(&s))?.into_inner();
            show(&args.target, &vm.name, "disk", &reply)
        }
        AttachCommand::Net(args) => {
            let mut vm = args.target.process().await?;
            let reply = vm.client.attach_net(AttachNetRequest { table: args.table() }).await;
            show(&args.target, &vm.name, "net", &reply.map_err(|s| plain(&s))?.into_inner())
        }
    }
}

pub(super) async fn detach(args: &DetachArgs) -> Result<()> {
    let mut vm = args.target.process().await?;
    let ask = DetachRequest { name: args.device.clone(), timeout_s: args.timeout };
    let slot = vm.client.detach(ask).await.map_err(|s| plain(&s))?.into_inner().slot;
    let answer = json!({ "vm": vm.name, "detached": args.device, "slot": slot });
    args.target
        .asking
        .show(&answer, |_| format!("{} has let go of {}; slot {slot} is free", vm.name, args.device))
}

fn show(target: &Target, vm: &str, kind: &str, reply: &AttachResponse) -> Result<()> {
    let AttachResponse { name, slot } = reply;
    target.asking.show(&json!({ "vm": vm, "kind": kind, "name": name, "slot": slot }), |_| {
        format!("{vm} has {kind} {name} in slot {slot}; the guest finds it at PCI address 00:{slot:02x}.0")
    })
}

/// A table of a spec, of what is said.
fn table(fields: impl IntoIterator<Item = (&'static str, Option<toml::Value>)>) -> String {
    let said = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    said.collect::<toml::Table>().to_string()
}

fn text(value: &str) -> toml::Value {
    toml::Value::String(value.to_owned())
}

fn number(value: impl Into<u64>) -> toml::Value {
    toml::Value::Integer(i64::try_from(value.into()).unwrap_or(i64::MAX))
}

impl AttachDiskArgs {
    fn table(&self) -> Result<String> {
        let path = std::path::absolute(&self.path).context("--path is no path")?;
        let path = path.canonicalize().unwrap_or(path);
        Ok(table([
            ("path", Some(text(&whole(&path)?))),
            ("format", self.format.as_deref().map(text)),
            ("serial", self.serial.as_deref().map(text)),
            ("readonly", self.readonly.then_some(toml::Value::Boolean(true))),
            ("cache", self.cache.as_deref().map(text)),
            ("iops", self.iops.map(number)),
            ("bytes_per_s", self.bytes_per_s.map(number)),
            ("slot", self.slot.map(number)),
        ]))
    }
}

fn whole(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("--path {} is no text", path.display()))
}

impl AttachNetArgs {
    fn table(&self) -> String {
        table([
            ("tap", Some(text(&self.tap))),
            ("mac", Some(text(&self.mac))),
            ("queues", self.queues.map(number)),
            ("bytes_per_s", self.bytes_per_s.map(number)),
            ("packets_per_s", self.packets_per_s.map(number)),
            ("slot", self.slot.map(number)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: AttachCommand,
    }

    #[test]
    fn what_is_said_becomes_a_table_and_nothing_else() {
        let words =
            ["x", "disk", "--api", "/a", "--path", "/no/such \"disk\".qcow2", "--readonly", "--slot", "9"];
        let Ok(Cli { command: AttachCommand::Disk(disk) }) = Cli::try_parse_from(words) else { panic!() };
        let table: toml::Table = disk.table().unwrap().parse().unwrap();
        assert_eq!(table["path"].as_str(), Some("/no/such \"disk\".qcow2"));
        assert_eq!((table["readonly"].as_bool(), table["slot"].as_integer()), (Some(true), Some(9)));
        assert_eq!(table.len(), 3);
        let words = ["x", "net", "web", "--tap", "tap7", "--mac", "02:00:00:00:00:07"];
        let Ok(Cli { command: AttachCommand::Net(card) }) = Cli::try_parse_from(words) else { panic!() };
        assert_eq!(card.table().parse::<toml::Table>().unwrap().len(), 2);
    }
}
