//! The VMs of this node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use endophyte_vmm::spec::VmSpec;
use mycelium_api::Vm;
use mycelium_ram_core::{NodeId, VmId};
use mycelium_spores::Spore;

use crate::config::NodeConfig;
use crate::entry::{Entry, StartedAs, VmFolder};
use crate::keeper::{Keeper, Order};
use crate::limits;
use crate::process::{Launch, Process, ProcessError};

/// Why a VM cannot be had as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error("the VM's spec: {0}")]
    Spec(String),
    #[error("on loss {0:?} is no policy; there are degrade and halt")]
    Policy(String),
    #[error("there is a VM {0} on this node already ({1}); remove it first: mycelium vm rm {0}")]
    Exists(String, String),
    #[error("there is no VM {0} on this node; `mycelium vm list` shows where it is")]
    Unknown(String),
    #[error(
        "this node is in no network yet; make one (`mycelium network init`) or join one (`mycelium network join`)"
    )]
    Outside,
    #[error("this node keeps {} VMs already, as many as one daemon may", limits::VMS)]
    Full,
    #[error("VM {0} runs; stop it first: mycelium vm stop {0}")]
    Runs(String),
    #[error("VM {0} has no replica in sync ({1}); a failover would lose it")]
    Unprotected(String, String),
    #[error("not enough memory for VM {vm}: {free} MiB are free, {need} MiB are needed")]
    NoRoom { vm: String, free: u64, need: u64 },
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot keep the VM's files: {0}; check that the disk has room")]
    Files(#[from] std::io::Error),
    #[error("{0}")]
    Network(String),
}

/// All of them, and what it takes to start one.
#[derive(Debug)]
pub(crate) struct Vms {
    pub(crate) config: NodeConfig,
    keepers: Mutex<BTreeMap<String, Arc<Keeper>>>,
}

impl Vms {
    pub(crate) fn new(config: NodeConfig) -> Self {
        Self { config, keepers: Mutex::default() }
    }

    fn keepers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Keeper>>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, name: &str) -> Result<Arc<Keeper>, VmError> {
        self.keepers().get(name).cloned().ok_or_else(|| VmError::Unknown(name.to_owned()))
    }

    /// How all VMs of this node are.
    pub(crate) fn list(&self) -> Vec<Vm> {
        self.keepers().values().map(|keeper| keeper.view()).collect()
    }

    /// Finds the processes again that an earlier daemon started.
    pub(crate) async fn adopt(&self, spore: &Arc<Spore>) {
        for (folder, mut entry) in VmFolder::all(&self.config.folder) {
            let process = match entry.process {
                Some((pid, started)) => Process::adopt(pid, started, &self.api_of(&entry.name)).await,
                None => None,
            };
            if process.is_none() && entry.ended.is_none() {
                entry.ended = Some("ended while no daemon ran".to_owned());
            }
            let name = entry.name.clone();
            let keeper = Keeper::start(entry, folder, process, spore.clone(), self.api_of(&name));
            self.keepers().insert(name, keeper);
        }
    }

    /// Starts a VM as its active.
    pub(crate) async fn run(
        &self,
        spore: &Arc<Spore>,
        spec: &str,
        protect: bool,
        on_loss: &str,
    ) -> Result<Vm, VmError> {
        let on_loss = if on_loss.is_empty() { "degrade" } else { on_loss };
        if !["degrade", "halt"].contains(&on_loss) {
            return Err(VmError::Policy(on_loss.to_owned()));
        }
        let entry = self.entry(spec, StartedAs::Active, protect, on_loss)?;
        let role = ["active".to_owned(), "--on-loss".to_owned(), on_loss.to_owned()];
        Ok(self.launch(spore, entry, spec, &role).await?.view())
    }

    /// Holds a replica of a VM that another node runs; answers with its ticket.
    pub(crate) async fn hold(
        &self,
        spore: &Arc<Spore>,
        from: NodeId,
        spec: &str,
        on_loss: &str,
    ) -> Result<String, VmError> {
        let name = parse(spec)?.name;
        if let Ok(keeper) = self.find(&name) {
            if let Some(ticket) = keeper.serve_active(from).await {
                return Ok(ticket);
            }
            let view = keeper.view();
            if view.role != "ended" {
                return Err(VmError::Exists(name, view.role));
            }
            self.keepers().remove(&name);
        }
        let entry = self.entry(spec, StartedAs::Passive, true, on_loss)?;
        let mut role = vec!["passive".to_owned(), "--orphan-after".to_owned(), limits::ORPHAN_S.to_string()];
        role.extend(["--allow".to_owned(), from.to_string()]);
        for addr in self.config.path_addrs() {
            role.extend(["--listen".to_owned(), addr.to_string()]);
        }
        let keeper = self.launch(spore, entry, spec, &role).await?;
        keeper.first_ticket().await.ok_or_else(|| VmError::Network("the passive has no ticket".to_owned()))
    }

    fn entry(
        &self,
        spec: &str,
        started_as: StartedAs,
        protect: bool,
        on_loss: &str,
    ) -> Result<Entry, VmError> {
        let parsed = parse(spec)?;
        if let Ok(keeper) = self.find(&parsed.name) {
            return Err(VmError::Exists(parsed.name, keeper.view().role));
        }
        if self.keepers().len() >= limits::VMS {
            return Err(VmError::Full);
        }
        let need = parsed.ram_bytes + limits::VMM_OVERHEAD_BYTES;
        let free = crate::capacity::look().free_memory_bytes;
        if free < need {
            return Err(VmError::NoRoom { vm: parsed.name, free: free >> 20, need: need >> 20 });
        }
        Ok(Entry {
            name: parsed.name,
            started_as,
            protect,
            on_loss: on_loss.to_owned(),
            ram_bytes: parsed.ram_bytes,
            process: None,
            ended: None,
        })
    }

    async fn launch(
        &self,
        spore: &Arc<Spore>,
        mut entry: Entry,
        spec: &str,
        role: &[String],
    ) -> Result<Arc<Keeper>, VmError> {
        let folder = VmFolder::of(&self.config.folder, &entry.name);
        folder.save(&entry)?;
        std::fs::write(folder.spec(), spec)?;
        let api = self.api_of(&entry.name);
        let mut args = role.to_vec();
        let text = |path: PathBuf| path.display().to_string();
        args.extend([
            "--spec".to_owned(),
            text(folder.spec()),
            "--run-dir".to_owned(),
            text(folder.run_dir()),
        ]);
        args.extend(["--key".to_owned(), text(self.config.folder.join("node.key"))]);
        args.extend(["--mtu".to_owned(), self.config.mtu.to_string()]);
        for arbiter in arbiters(spore) {
            args.extend(["--arbiter".to_owned(), arbiter]);
        }
        let launch = Launch { program: &self.config.endophyte, args, log: folder.log(), api: api.clone() };
        let started = Process::start(launch).await;
        let process = match started {
            Ok(process) => process,
            Err(error) => {
                let _ = folder.remove();
                return Err(error.into());
            }
        };
        entry.process = Some((process.pid, process.started));
        folder.save(&entry)?;
        let name = entry.name.clone();
        let keeper = Keeper::start(entry, folder, Some(process), spore.clone(), api);
        self.keepers().insert(name, keeper.clone());
        Ok(keeper)
    }

    /// The other side of [`Vms::hold`]: the asker does not need its replica any more.
    pub(crate) async fn release(&self, name: &str) -> Result<(), VmError> {
        let keeper = self.find(name)?;
        if keeper.view().role == "passive" {
            keeper.order(Order::Stop).await;
        }
        if keeper.view().role == "ended" {
            self.forget_ended(name)?;
        }
        Ok(())
    }

    /// Forgets a VM whose process has ended.
    pub(crate) fn forget_ended(&self, name: &str) -> Result<(), VmError> {
        let keeper = self.find(name)?;
        if keeper.view().role != "ended" {
            return Err(VmError::Runs(name.to_owned()));
        }
        keeper.folder().remove()?;
        self.keepers().remove(name);
        Ok(())
    }

    fn api_of(&self, name: &str) -> PathBuf {
        let dir = self.config.api.parent().unwrap_or_else(|| std::path::Path::new("/run/mycelium"));
        dir.join(format!("vm-{name}.sock"))
    }
}

fn parse(spec: &str) -> Result<VmSpec, VmError> {
    if spec.len() > limits::SPEC_BYTES {
        return Err(VmError::Spec(format!("{} bytes, at most {} are taken", spec.len(), limits::SPEC_BYTES)));
    }
    let parsed = VmSpec::parse(spec, std::path::Path::new("/vm.toml"))
        .map_err(|error| VmError::Spec(error.to_string()))?;
    VmId::new(parsed.name.clone()).map_err(|error| VmError::Spec(error.to_string()))?;
    Ok(parsed)
}

/// Whom a VM's process asks: this node's daemon first, which knows the leader; the others if it is gone.
fn arbiters(spore: &Spore) -> Vec<String> {
    let nodes = spore.nodes();
    let (mine, others): (Vec<_>, Vec<_>) = nodes.iter().partition(|(node, _)| **node == spore.node());
    let ticket = |node: &NodeId, addrs: &[std::net::SocketAddr]| {
        let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        format!("{node}@{}", addrs.join(","))
    };
    let own = if mine.is_empty() { vec![ticket(&spore.node(), spore.addrs())] } else { Vec::new() };
    let known = mine.into_iter().chain(others).map(|(node, entry)| ticket(node, &entry.addrs));
    own.into_iter().chain(known).collect()
}
