//! Saving a VM to a file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use endophyte_api::{SnapshotProgress, SnapshotRequest};
use indicatif::{ProgressBar, ProgressStyle};
use mycelium_api::Vm;
use mycelium_images::{Unwatched, disk};
use serde_json::json;

use super::target::{Process, Target, ended};
use crate::output::plain;

/// What to save, and where.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    target: Target,
    /// File to write; an older one of that name is replaced once the new one is whole. By default the daemon's folder of
    /// snapshots, under the time of day.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// End the VM when the file is there, so that its disks stay as they are.
    #[arg(long)]
    stop: bool,
}

pub(super) async fn snapshot(args: &SnapshotArgs) -> Result<()> {
    let mut vm = args.target.process().await?;
    let place = Place::of(&vm, args.to.as_deref())?;
    let end = save(&mut vm, &place.write, args.stop).await?;
    let bytes = fs::metadata(&place.write).map_or(0, |file| file.len());
    place.settle()?;
    if let (true, Some(known)) = (args.stop, &vm.vm) {
        ended(&args.target.asking, &known.name).await?;
    }
    let paused_ms = end.paused_us / 1000;
    let answer = json!({
        "vm": vm.name, "file": place.keep, "bytes": bytes, "paused_us": end.paused_us, "stopped": args.stop,
    });
    args.target.asking.show(&answer, |_| {
        let (file, mib) = (place.keep.display(), bytes >> 20);
        let then = if args.stop { "has ended" } else { "goes on" };
        format!("{} is in {file} ({mib} MiB); it stood still for {paused_ms} ms and {then}", vm.name)
    })
}

/// Has the process write the file, and shows how far it is.
async fn save(vm: &mut Process, path: &Path, stop: bool) -> Result<SnapshotProgress> {
    let ask = SnapshotRequest { path: path.display().to_string(), stop };
    let mut steps = vm.client.snapshot(ask).await.map_err(|s| plain(&s))?.into_inner();
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(
        "{elapsed:>4} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}",
    )?);
    while let Some(step) = steps.message().await.map_err(|s| plain(&s))? {
        if step.finished {
            bar.finish_and_clear();
            return Ok(step);
        }
        bar.set_length(step.total_bytes);
        bar.set_position(step.done_bytes);
    }
    bail!("the VM's process ended before the snapshot was whole; `mycelium vm inspect` shows how")
}

/// Where the process writes the file, and where it is to be kept: a process in its sandbox reaches its own folder only.
struct Place {
    write: PathBuf,
    keep: PathBuf,
}

impl Place {
    fn of(vm: &Process, to: Option<&Path>) -> Result<Place> {
        let to = to.map(std::path::absolute).transpose().context("--to is no path")?;
        if let Some(parent) = to.as_deref().and_then(Path::parent).filter(|parent| !parent.is_dir()) {
            bail!("there is no folder {} to write the snapshot to; make it first", parent.display());
        }
        match (&vm.vm, to) {
            (None, None) => bail!("name the file with --to; only a daemon has a folder of snapshots"),
            (None, Some(to)) => Ok(Place { write: to.clone(), keep: to }),
            (Some(vm), to) => {
                let write = folder(vm)?.join(format!("{}.snap", now_s()));
                Ok(Place { keep: to.unwrap_or_else(|| write.clone()), write })
            }
        }
    }

    /// Moves the file to where it is kept.
    fn settle(&self) -> Result<()> {
        if self.write == self.keep {
            return Ok(());
        }
        match fs::rename(&self.write, &self.keep) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                disk::copy(&self.write, &self.keep, &Unwatched)?;
                fs::remove_file(&self.write).map_err(Into::into)
            }
            moved => moved,
        }
        .with_context(|| {
            format!(
                "the snapshot is whole, but cannot be moved from {} to {}",
                self.write.display(),
                self.keep.display()
            )
        })
    }
}

/// The daemon's folder of this VM's snapshots: outside the VM's own, which goes with the VM.
fn folder(vm: &Vm) -> Result<PathBuf> {
    let state = Path::new(&vm.folder).parent().and_then(Path::parent);
    let state = state.with_context(|| format!("the daemon's folder {} is no VM's", vm.folder))?;
    let folder = state.join("snapshots").join(&vm.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
