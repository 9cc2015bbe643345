//! Which VM is meant: one of this node's daemon by its name, or one whose process serves an API socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use endophyte_api::VmClient;
use mycelium_api::Vm;

use super::list::list;
use crate::output::Asking;

/// Interval of looks at whether a VM has ended, and for how long: its process writes out its disks first.
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// A VM whose process is asked itself.
#[derive(Debug, Args)]
pub(crate) struct Target {
    #[command(flatten)]
    pub(super) asking: Asking,
    /// The VM's name.
    #[arg(required_unless_present = "api")]
    name: Option<String>,
    /// Instead of a name: the API socket of the VM's process (`endophyte run --api`), which needs no daemon.
    #[arg(long, value_name = "SOCKET", conflicts_with = "name")]
    api: Option<PathBuf>,
}

/// The process behind a target.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) client: VmClient,
    /// What people call it.
    pub(super) name: String,
    /// As its daemon has it, if it has one.
    pub(super) vm: Option<Vm>,
}

impl Target {
    /// The VM's name, if it is that of a daemon's.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Connects to the VM's process.
    pub(super) async fn process(&self) -> Result<Process> {
        if let Some(api) = &self.api {
            let client = connect(api, &api.display().to_string()).await?;
            return Ok(Process { client, name: api.display().to_string(), vm: None });
        }
        let name = self.name.clone().unwrap_or_default();
        let vm = here(&self.asking, &name).await?;
        if vm.role == "ended" {
            bail!("VM {name} has ended; `mycelium vm inspect {name}` shows how");
        }
        let client = connect(Path::new(&vm.api), &name).await?;
        Ok(Process { client, name, vm: Some(vm) })
    }
}

async fn connect(api: &Path, name: &str) -> Result<VmClient> {
    // gRPC wraps what the system says several times.
    let connected = endophyte_api::connect(api).await.map_err(anyhow::Error::from);
    connected.map_err(|error| anyhow!("VM {name} does not answer: {}", error.root_cause()))
}

/// Waits until the process of a VM that was told to end has ended.
pub(super) async fn ended(asking: &Asking, name: &str) -> Result<()> {
    let gone = async {
        while here(asking, name).await?.role != "ended" {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    let timely = tokio::time::timeout(PATIENCE, gone).await;
    timely.unwrap_or_else(|_| {
        bail!("VM {name} has not ended within {} s; `mycelium vm stop {name}`", PATIENCE.as_secs())
    })
}

/// The VM as this node has it; its files and sockets are on its own node.
pub(super) async fn here(asking: &Asking, name: &str) -> Result<Vm> {
    let vms = list(asking).await?;
    let named: Vec<&Vm> = vms.iter().filter(|vm| vm.name == name).collect();
    if let Some(vm) = named.iter().find(|vm| !vm.folder.is_empty()) {
        return Ok((*vm).clone());
    }
    match named.first() {
        Some(vm) => bail!("VM {name} is on node {}; run this command there", vm.node_name),
        None => bail!("there is no VM {name} in the network; `mycelium vm list` shows what there is"),
    }
}
