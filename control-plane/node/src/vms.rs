//! The VMs of this node.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use endophyte_vmm::spec::VmSpec;
use mycelium_api::{RunVmRequest, Vm};
use mycelium_ram_core::{NodeId, VmId};
use mycelium_spores::Spore;

use crate::config::NodeConfig;
use crate::disks::{self, DiskAsked, DiskError, Earlier, Mark, Wanted};
use crate::entry::{Entry, StartedAs, VmFolder};
use crate::group::Claims;
use crate::keeper::{Keeper, Order};
use crate::limits;
use crate::process::{Launch, Process, ProcessError};
use crate::turns::Turns;

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
    #[error(
        "a pod of group {0} is on this node already, and two pods of a group belong on two nodes; give them anti-affinity \
         (topologyKey: kubernetes.io/hostname)"
    )]
    GroupHere(String),
    #[error("VM {0} has a record, and who runs it is not clear: {1}")]
    GroupWaits(String, String),
    #[error(
        "the shim's process {0} is not to be seen from this daemon; both must run among the host's processes (hostPID)"
    )]
    Unseen(u32),
    #[error(
        "VM {0} has a replica in sync on node {1}, which takes over by itself; without its record it could not"
    )]
    Awaited(String, String),
    #[error("VM {0} is the pods of group {1}; delete or scale them in Kubernetes")]
    OfPods(String, String),
    #[error("VM {0} cannot be protected: {1}")]
    Alone(String, &'static str),
    #[error(transparent)]
    Disks(#[from] DiskError),
    #[error(
        "disks of VM {vm} are in {}, and may hold what its guest wrote last; move away what is needed, or discard them: mycelium vm rm \
         {vm} --discard-disks",
        folder.display()
    )]
    KeepsDisks { vm: String, folder: PathBuf },
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot keep the VM's files: {0}; check that the disk has room")]
    Files(#[from] std::io::Error),
    #[error("{0}")]
    Network(String),
}

/// A replica that another node wants to be held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    /// TOML.
    pub(crate) spec: &'a str,
    pub(crate) on_loss: &'a str,
    /// Of a VM with writable disks.
    pub(crate) disks: Option<(&'a Mark, &'a [DiskAsked])>,
}

/// All of them, and what it takes to start one.
#[derive(Debug)]
pub(crate) struct Vms {
    pub(crate) config: NodeConfig,
    keepers: Mutex<BTreeMap<String, Arc<Keeper>>>,
    pub(crate) claims: Claims,
    turns: Turns,
}

impl Vms {
    pub(crate) fn new(config: NodeConfig) -> Self {
        Self { config, keepers: Mutex::default(), claims: Claims::default(), turns: Turns::default() }
    }

    fn keepers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Keeper>>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, name: &str) -> Result<Arc<Keeper>, VmError> {
        self.keepers().get(name).cloned().ok_or_else(|| VmError::Unknown(name.to_owned()))
    }

    pub(crate) fn insert(&self, name: &str, keeper: Arc<Keeper>) {
        self.keepers().insert(name.to_owned(), keeper);
    }

    /// A VM that is ours to start and stop, which pods' are not.
    pub(crate) fn find_own(&self, name: &str) -> Result<Arc<Keeper>, VmError> {
        let keeper = self.find(name)?;
        let group = keeper.view().group;
        if group.is_empty() { Ok(keeper) } else { Err(VmError::OfPods(name.to_owned(), group)) }
    }

    /// Lets go of pods' VMs that have ended; Kubernetes remembers pods.
    pub(crate) fn sweep(&self) {
        self.keepers().retain(|_, keeper| {
            let view = keeper.view();
            view.group.is_empty() || view.role != "ended"
        });
        self.claims.drop_stale(&self.config.folder);
    }

    /// How all VMs of this node are.
    pub(crate) fn list(&self) -> Vec<Vm> {
        self.keepers().values().map(|keeper| keeper.view()).collect()
    }

    /// Finds the processes again that an earlier daemon started.
    pub(crate) async fn adopt(&self, spore: &Arc<Spore>) {
        for (folder, mut entry) in VmFolder::all(&self.config.folder) {
            let api = entry.pod.as_ref().map_or_else(|| self.api_of(&entry.name), |pod| pod.api.clone());
            let mut process = match entry.process {
                Some((pid, started)) => Process::adopt(pid, started, &api).await,
                None => None,
            };
            if process.is_none() && entry.ended.is_none() {
                // The daemon may have died before it wrote down what it had started.
                process = Process::at(&api).await;
                entry.process = process.as_ref().map(|p| (p.pid, p.started)).or(entry.process);
            }
            if entry.pod.is_some() && process.is_none() {
                // With a process it has ended, and without one its shim may be about to start it.
                if entry.process.is_none() {
                    self.claims.remember(entry);
                } else {
                    let _ = folder.remove();
                }
                continue;
            }
            if process.is_none() && entry.ended.is_none() {
                entry.ended = Some("ended while no daemon ran".to_owned());
            }
            let name = entry.name.clone();
            let keeper = Keeper::start(entry, folder, process, spore.clone(), api);
            self.keepers().insert(name, keeper);
        }
    }

    /// Starts a VM: as its active, so that it may have a replica at once or later, if there can be one.
    pub(crate) async fn run(&self, spore: &Arc<Spore>, ask: &RunVmRequest) -> Result<Vm, VmError> {
        let on_loss = known_policy(&ask.on_loss)?;
        let spec = parse(&ask.spec)?;
        let _turn = self.turns.take(&spec.name).await;
        let alone = why_alone(ask);
        if let Some(why) = alone.filter(|_| ask.protect) {
            return Err(VmError::Alone(spec.name, why));
        }
        // Without a replica it is worth more to be able to save it, migrate it, and plug devices in.
        let is_alone = alone.is_some() || (disks::are_written(&spec) && !ask.protect);
        let started_as = if is_alone { StartedAs::Alone } else { StartedAs::Active };
        let entry = Entry { mark: Mark::new(), ..self.entry(&ask.spec, started_as, ask.protect, on_loss)? };
        let folder = VmFolder::of(&self.config.folder, &spec.name);
        if !disks::kept_in(&folder).is_empty() {
            return Err(DiskError::Others { vm: spec.name, folder: folder.disks() }.into());
        }
        let role = match started_as {
            StartedAs::Alone => vec!["run".to_owned()],
            _ => ["active", "--on-loss", on_loss].map(str::to_owned).to_vec(),
        };
        let restore = (!ask.restore.is_empty()).then(|| ["--restore".to_owned(), ask.restore.clone()]);
        let reach = ask.reach.iter().flat_map(|folder| ["--reach".to_owned(), folder.clone()]);
        let taps = ask.attach_taps.then(|| "--attach-taps".to_owned());
        let later = restore.into_iter().flatten().chain(reach).chain(taps);
        let role: Vec<String> = role.into_iter().chain(later).collect();
        match self.launch(spore, entry, &ask.spec, &role).await {
            Ok(keeper) => Ok(keeper.view()),
            Err(error) => {
                let _ = folder.remove();
                Err(error)
            }
        }
    }

    /// Holds a replica of a VM that another node runs; answers with its ticket.
    pub(crate) async fn hold(
        &self,
        spore: &Arc<Spore>,
        from: NodeId,
        wish: &Wish<'_>,
    ) -> Result<String, VmError> {
        let parsed = parse(wish.spec)?;
        let name = parsed.name.clone();
        let _turn = self.turns.take(&name).await;
        let before = self.find(&name).ok();
        if let Some(keeper) = &before {
            if let Some(ticket) = keeper.serve_active(from).await {
                return Ok(ticket);
            }
            let view = keeper.view();
            if view.role != "ended" {
                return Err(VmError::Exists(name, view.role));
            }
        }
        let folder = VmFolder::of(&self.config.folder, &name);
        let before = before.map(|keeper| (keeper.entry(), keeper));
        let spec = specify(wish, &parsed, &folder, before.as_ref().map(|(entry, _)| entry))?;
        self.keepers().remove(&name);
        let started = self.start_passive(spore, from, &spec, wish).await;
        if started.is_err() {
            match before {
                // Its images may be the last of their VM.
                Some((entry, keeper)) => {
                    self.insert(&name, keeper);
                    folder.save(&entry)?;
                }
                None => drop(folder.remove_if_there()),
            }
        }
        started?.ticket().await.ok_or_else(|| VmError::Network("the passive has no ticket".to_owned()))
    }

    async fn start_passive(
        &self,
        spore: &Arc<Spore>,
        from: NodeId,
        spec: &str,
        wish: &Wish<'_>,
    ) -> Result<Arc<Keeper>, VmError> {
        let mark = wish.disks.map(|(mark, _)| mark.clone()).unwrap_or_default();
        let entry = Entry { mark, ..self.entry(spec, StartedAs::Passive, true, wish.on_loss)? };
        let mut role = self.passive_args(from);
        role.extend(["--orphan-after".to_owned(), limits::ORPHAN_S.to_string()]);
        self.launch(spore, entry, spec, &role).await
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
        self.room_for(&parsed.name, parsed.ram_bytes)?;
        Ok(Entry {
            name: parsed.name,
            started_as,
            protect,
            on_loss: on_loss.to_owned(),
            ram_bytes: parsed.ram_bytes,
            process: None,
            ended: None,
            pod: None,
            mark: Mark::default(),
        })
    }

    pub(crate) fn room_for(&self, vm: &str, ram_bytes: u64) -> Result<(), VmError> {
        if self.keepers().len() >= limits::VMS {
            return Err(VmError::Full);
        }
        let need = ram_bytes + limits::VMM_OVERHEAD_BYTES;
        let free = crate::capacity::look().free_memory_bytes;
        if free < need {
            return Err(VmError::NoRoom { vm: vm.to_owned(), free: free >> 20, need: need >> 20 });
        }
        Ok(())
    }

    /// Arguments of a passive for the active on that node.
    pub(crate) fn passive_args(&self, active: NodeId) -> Vec<String> {
        let mut args = vec!["passive".to_owned(), "--allow".to_owned(), active.to_string()];
        for addr in self.config.path_addrs() {
            args.extend(["--listen".to_owned(), addr.to_string()]);
        }
        args
    }

    /// Arguments of every process of this node.
    pub(crate) fn process_args(&self, spore: &Spore, folder: &VmFolder) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        let mut args = vec!["--run-dir".to_owned(), text(folder.run_dir())];
        args.extend(["--key".to_owned(), text(self.config.folder.join("node.key"))]);
        args.extend(["--mtu".to_owned(), self.config.mtu.to_string()]);
        args.extend(["--detect-ms".to_owned(), self.config.detect_ms.to_string()]);
        for arbiter in arbiters(spore) {
            args.extend(["--arbiter".to_owned(), arbiter]);
        }
        args
    }

    /// Starts a VM's process. If that fails, what is in the VM's folder is the caller's to clear away.
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
        std::fs::create_dir_all(folder.snapshots())?;
        let api = self.api_of(&entry.name);
        api.parent().map_or(Ok(()), make_private)?;
        let mut args = role.to_vec();
        args.extend(["--spec".to_owned(), folder.spec().display().to_string()]);
        args.extend(["--reach".to_owned(), folder.snapshots().display().to_string()]);
        args.extend(match entry.started_as {
            StartedAs::Alone => vec!["--run-dir".to_owned(), folder.run_dir().display().to_string()],
            _ => self.process_args(spore, &folder),
        });
        let launch = Launch { program: &self.config.endophyte, args, log: folder.log(), api: api.clone() };
        let spawned = |pid, started| {
            entry.process = Some((pid, started));
            folder.save(&entry)
        };
        let process = Process::start(launch, spawned).await?;
        let name = entry.name.clone();
        let keeper = Keeper::start(entry, folder, Some(process), spore.clone(), api);
        self.insert(&name, keeper.clone());
        Ok(keeper)
    }

    /// The other side of [`Vms::hold`]: the asker does not need its replica any more.
    pub(crate) async fn release(&self, name: &str) -> Result<(), VmError> {
        let keeper = self.find(name)?;
        let was_passive = keeper.view().role == "passive";
        if was_passive {
            keeper.order(Order::Stop).await;
        }
        if keeper.view().role == "ended" {
            self.forget_ended(name, was_passive)?;
        }
        Ok(())
    }

    /// Forgets a VM whose process has ended. Images that were made for it go with it only if they are to be discarded.
    pub(crate) fn forget_ended(&self, name: &str, discard_disks: bool) -> Result<(), VmError> {
        let keeper = self.find(name)?;
        if keeper.view().role != "ended" {
            return Err(VmError::Runs(name.to_owned()));
        }
        if !discard_disks && !disks::kept_in(keeper.folder()).is_empty() {
            let folder = keeper.folder().disks();
            return Err(VmError::KeepsDisks { vm: name.to_owned(), folder });
        }
        keeper.folder().remove()?;
        if let Some(folder) = self.api_of(name).parent() {
            // A pod's is elsewhere, and then there is none.
            let _ = std::fs::remove_dir(folder);
        }
        self.keepers().remove(name);
        Ok(())
    }

    /// In a folder of its own: the VM's process may remove what is there, and not the sockets of others.
    fn api_of(&self, name: &str) -> PathBuf {
        let dir = self.config.api.parent().unwrap_or_else(|| Path::new("/run/mycelium"));
        dir.join(format!("vm-{name}")).join("api.sock")
    }
}

/// Makes a folder for this user only, unless it is there.
fn make_private(folder: &Path) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A policy for the loss of a replica, by its name; degrade if none is given.
pub(crate) fn known_policy(on_loss: &str) -> Result<&str, VmError> {
    match on_loss {
        "" => Ok("degrade"),
        "degrade" | "halt" => Ok(on_loss),
        other => Err(VmError::Policy(other.to_owned())),
    }
}

/// The spec of a replica on this node, with its disks made.
fn specify(
    wish: &Wish<'_>,
    parsed: &VmSpec,
    folder: &VmFolder,
    before: Option<&Entry>,
) -> Result<String, VmError> {
    let Some((mark, asked)) = wish.disks else {
        if disks::are_written(parsed) {
            let why = "its disks are writable, and nothing is said of them".to_owned();
            return Err(DiskError::Asked(why).into());
        }
        if !disks::kept_in(folder).is_empty() {
            return Err(DiskError::Others { vm: parsed.name.clone(), folder: folder.disks() }.into());
        }
        return Ok(wish.spec.to_owned());
    };
    let spec = || std::fs::read_to_string(folder.spec()).ok().and_then(|text| parse(&text).ok());
    let earlier = before.map(|entry| Earlier { mark: &entry.mark, spec: spec() });
    let wanted = Wanted { text: wish.spec, spec: parsed, disks: asked, mark };
    Ok(disks::for_replica(&wanted, folder, earlier.as_ref())?)
}

/// Why a VM can have no replica, if it cannot.
fn why_alone(ask: &RunVmRequest) -> Option<&'static str> {
    if !ask.restore.is_empty() {
        return Some("it is restored from a snapshot; start it anew with --protect");
    }
    (!ask.reach.is_empty() || ask.attach_taps)
        .then_some("devices may be attached to it, which a replica could not follow; leave out --reach and --attach-taps")
}

pub(crate) fn parse(spec: &str) -> Result<VmSpec, VmError> {
    if spec.len() > limits::SPEC_BYTES {
        return Err(VmError::Spec(format!("{} bytes, at most {} are taken", spec.len(), limits::SPEC_BYTES)));
    }
    let parsed =
        VmSpec::parse(spec, Path::new("/vm.toml")).map_err(|error| VmError::Spec(error.to_string()))?;
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
