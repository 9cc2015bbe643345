//! Starting VMs, anew or from a snapshot.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use mycelium_api::RunVmRequest;

use super::list::describe;
use crate::output::{Asking, plain};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    asking: Asking,
    /// VM spec file (TOML). Kernel, initrd and taps must be there under the same names on every node that may run it.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Keep a replica on another node, which makes images of its own for disks that are written to.
    #[arg(long)]
    protect: bool,
    #[command(flatten)]
    later: LaterArgs,
    /// When there is no replica: run on unprotected, or stop until there is one.
    #[arg(long, value_name = "POLICY", default_value = "degrade")]
    on_loss: OnLoss,
}

/// What may be attached while it runs.
#[derive(Debug, Args)]
struct LaterArgs {
    /// A folder in which `mycelium vm attach disk` may find disks; may be given several times. VMs without protection only.
    #[arg(long, value_name = "FOLDER")]
    reach: Vec<PathBuf>,
    /// `mycelium vm attach net` may use taps of this node. VMs without protection only.
    #[arg(long)]
    attach_taps: bool,
}

impl LaterArgs {
    fn folders(&self) -> Result<Vec<String>> {
        let whole = |folder: &PathBuf| {
            let found = std::fs::canonicalize(folder);
            let found = found
                .with_context(|| format!("--reach {}: give a folder that is there", folder.display()))?;
            Ok(found.display().to_string())
        };
        self.reach.iter().map(whole).collect()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnLoss {
    Degrade,
    Halt,
}

/// Which snapshot, and what its machine is attached to.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    asking: Asking,
    /// The snapshot's file.
    #[arg(value_name = "FILE")]
    snapshot: PathBuf,
    #[command(flatten)]
    later: LaterArgs,
    /// VM spec file (TOML): the machine of the snapshot; names of taps and paths of disks may be others.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
}

pub(super) async fn run(args: &RunArgs) -> Result<()> {
    let on_loss = match args.on_loss {
        OnLoss::Degrade => "degrade",
        OnLoss::Halt => "halt",
    };
    let ask = RunVmRequest {
        spec: whole_paths(&args.spec)?,
        protect: args.protect,
        on_loss: on_loss.to_owned(),
        restore: String::new(),
        reach: args.later.folders()?,
        attach_taps: args.later.attach_taps,
    };
    start(&args.asking, ask).await
}

pub(super) async fn restore(args: &RestoreArgs) -> Result<()> {
    let snapshot = std::fs::canonicalize(&args.snapshot)
        .with_context(|| format!("cannot read the snapshot {}", args.snapshot.display()))?;
    let ask = RunVmRequest {
        spec: whole_paths(&args.spec)?,
        restore: snapshot.display().to_string(),
        reach: args.later.folders()?,
        attach_taps: args.later.attach_taps,
        ..RunVmRequest::default()
    };
    start(&args.asking, ask).await
}

async fn start(asking: &Asking, ask: RunVmRequest) -> Result<()> {
    let vm = asking.daemon().await?.run_vm(ask).await.map_err(|s| plain(&s))?;
    asking.show(&vm.into_inner(), describe)
}

/// Where a spec names files: by table, and by name in it.
const PATHS: [(&str, &str); 7] = [
    ("", "kernel"),
    ("", "initrd"),
    ("", "firmware"),
    ("", "serial"),
    ("disk", "path"),
    ("vsock", "socket"),
    ("console", "socket"),
];

/// The spec with its relative paths made whole: the daemon is elsewhere.
fn whole_paths(path: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the spec {}", path.display()))?;
    let mut spec: toml::Table =
        text.parse().with_context(|| format!("the spec {} is not TOML", path.display()))?;
    let base = std::path::absolute(path)?;
    let base = base.parent().unwrap_or(Path::new("/"));
    for (table, field) in PATHS {
        match spec.get_mut(table) {
            _ if table.is_empty() => whole(&mut spec, field, base),
            Some(toml::Value::Table(one)) => whole(one, field, base),
            Some(toml::Value::Array(many)) => {
                many.iter_mut().filter_map(toml::Value::as_table_mut).for_each(|one| whole(one, field, base));
            }
            _ => {}
        }
    }
    Ok(toml::to_string(&spec)?)
}

fn whole(table: &mut toml::Table, field: &str, base: &Path) {
    if let Some(toml::Value::String(file)) = table.get_mut(field)
        && !(field == "serial" && matches!(file.as_str(), "stdio" | "null"))
    {
        *file = base.join(&file).display().to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_of_a_spec_are_made_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.toml");
        let written = "name = \"a\"\nkernel = \"k\"\ninitrd = \"/abs\"\nserial = \"null\"\n[[disk]]\npath = \"one\"\nserial = \"d0\"\n\
                       [[disk]]\npath = \"/two\"\n[vsock]\ncid = 3\nsocket = \"v\"\n";
        std::fs::write(&path, written).unwrap();
        let spec: toml::Table = whole_paths(&path).unwrap().parse().unwrap();
        let here = |name| dir.path().join(name).display().to_string();
        assert_eq!(spec["kernel"].as_str(), Some(&*here("k")));
        assert_eq!(spec["initrd"].as_str(), Some("/abs"));
        assert_eq!(spec["serial"].as_str(), Some("null"));
        assert_eq!(spec["disk"][0]["path"].as_str(), Some(&*here("one")));
        assert_eq!(spec["disk"][0]["serial"].as_str(), Some("d0"));
        assert_eq!(spec["disk"][1]["path"].as_str(), Some("/two"));
        assert_eq!(spec["vsock"]["socket"].as_str(), Some(&*here("v")));
    }
}
