//! Pods of a group are one VM: which of them runs it, and which holds its replica.
//!
//! The pod that finds no record of the VM makes one, and is the active; the arbiter lets only one of several do so. The
//! others wait to be its replica, and the active's keeper finds them in their nodes' reports. A record whose processes
//! are all gone, by word of every node it names, is dropped, so that a group whose pods were all deleted can start again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mycelium_api::{JoinGroupReply, JoinGroupRequest, Vm};
use mycelium_ram_core::record::Record;
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{Member, NodeId, VmId};
use mycelium_spores::Spore;
use tokio::time::{Instant, sleep};

use crate::disks::Mark;
use crate::entry::{Entry, Pod, StartedAs, VmFolder};
use crate::keeper::Keeper;
use crate::limits;
use crate::peer::{Ask, Holding, Told, decode, encode};
use crate::process::{Process, start_time};
use crate::vms::{VmError, Vms, known_policy};

/// Places that were given to pods whose VMM does not answer yet.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<BTreeMap<String, Claim>>);

#[derive(Clone, Debug)]
struct Claim {
    entry: Entry,
    /// It was told what to be, so its VMM may run by now.
    told: bool,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of a VM beside running processes.
    fn holding(&self, vm: &str) -> Holding {
        let is_told = self.lock().get(vm).is_some_and(|claim| claim.told && claim.is_held());
        if is_told { Holding::Starting } else { Holding::Nothing }
    }

    /// Drops the places of shims that are gone, with their folders: under the lock, for the next pod makes its own.
    pub(crate) fn drop_stale(&self, daemon_folder: &Path) {
        for (name, _) in self.lock().extract_if(.., |_, claim| !claim.is_held()) {
            let _ = VmFolder::of(daemon_folder, &name).remove_if_there();
        }
    }

    /// A place that an earlier daemon gave.
    pub(crate) fn remember(&self, entry: Entry) {
        self.lock().insert(entry.name.clone(), Claim { entry, told: true });
    }
}

impl Claim {
    /// Whether the shim that has the place still lives.
    fn is_held(&self) -> bool {
        self.entry.pod.as_ref().is_some_and(|pod| start_time(pod.shim.0) == Some(pod.shim.1))
    }
}

/// As what a pod's VMM is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// Of the active on that node.
    ReplicaOf(NodeId),
}

impl Vms {
    /// What this node has of a VM.
    pub(crate) fn holds(&self, vm: &str) -> Holding {
        // Claims first: a place that becomes a process is there before it is gone here.
        let claimed = self.claims.holding(vm);
        self.find(vm).ok().and_then(|keeper| keeper.holding()).unwrap_or(claimed)
    }

    /// Finds out as what a pod's VMM is to be started.
    pub(crate) async fn join_group(
        &self,
        spore: &Arc<Spore>,
        request: JoinGroupRequest,
    ) -> Result<JoinGroupReply, VmError> {
        let vm = VmId::new(request.vm.clone()).map_err(|error| VmError::Spec(error.to_string()))?;
        let entry = self.claim(request)?;
        let place = match self.find_place(spore, &vm).await {
            Ok(place) => place,
            Err(error) => {
                self.withdraw(vm.as_str());
                return Err(error);
            }
        };
        let folder = VmFolder::of(&self.config.folder, vm.as_str());
        let started_as = if place == Place::Active { StartedAs::Active } else { StartedAs::Passive };
        let entry = Entry { started_as, ..entry };
        // On disk before the shim hears of it: the next daemon must know that a VMM may run.
        folder.remove_if_there()?;
        folder.save(&entry)?;
        self.claims.lock().insert(entry.name.clone(), Claim { entry: entry.clone(), told: true });
        let (role, mut args) = match place {
            Place::Active => ("active", vec!["active".to_owned(), "--on-loss".to_owned(), entry.on_loss]),
            Place::ReplicaOf(node) => ("passive", self.passive_args(node)),
        };
        args.extend(self.process_args(spore, &folder));
        Ok(JoinGroupReply { role: role.to_owned(), args })
    }

    /// Takes the group's place on this node.
    fn claim(&self, request: JoinGroupRequest) -> Result<Entry, VmError> {
        let JoinGroupRequest { vm, group, on_loss, ram_bytes, shim_pid, api } = request;
        let on_loss = known_policy(&on_loss)?;
        self.room_for(&vm, ram_bytes)?;
        self.sweep();
        let shim = (shim_pid, start_time(shim_pid).ok_or(VmError::Unseen(shim_pid))?);
        let pod = Pod { group: group.clone(), shim, api: PathBuf::from(api) };
        let entry = Entry {
            name: vm.clone(),
            started_as: StartedAs::Active,
            protect: true,
            on_loss: on_loss.to_owned(),
            ram_bytes,
            process: None,
            ended: None,
            pod: Some(pod),
            mark: Mark::default(),
        };
        let mut claims = self.claims.lock();
        if self.find(&vm).is_ok_and(|keeper| keeper.holding().is_some()) {
            return Err(VmError::GroupHere(group));
        }
        let of_other = |c: &Claim| c.is_held() && c.entry.pod.as_ref().is_some_and(|p| p.shim != shim);
        if claims.get(&vm).is_some_and(of_other) {
            return Err(VmError::GroupHere(group));
        }
        claims.insert(vm, Claim { entry: entry.clone(), told: false });
        Ok(entry)
    }

    async fn find_place(&self, spore: &Arc<Spore>, vm: &VmId) -> Result<Place, VmError> {
        let deadline = Instant::now() + limits::GROUP_PATIENCE;
        loop {
            let why = match self.look_for_place(spore, vm).await? {
                Ok(place) => return Ok(place),
                Err(why) => why,
            };
            if Instant::now() > deadline {
                return Err(VmError::GroupWaits(vm.to_string(), why));
            }
            sleep(limits::LOOK).await;
        }
    }

    /// One look. The inner error says what has to become clear first.
    async fn look_for_place(&self, spore: &Arc<Spore>, vm: &VmId) -> Result<Result<Place, String>, VmError> {
        let undecided = |e: mycelium_spores::SporeError| VmError::Network(e.to_string());
        let Reply::Record(record) = spore.answer(vm.clone(), Request::Read).await.map_err(undecided)? else {
            return Err(VmError::Network("the arbiter did not answer with a record".to_owned()));
        };
        let Some(record) = record else { return Ok(Ok(Place::Active)) };
        let mut any = false;
        for node in members(&record) {
            let here = spore.node() == node;
            let holding =
                if here { Ok(self.holds_besides_claim(vm)) } else { held_by(spore, node, vm).await };
            match holding {
                Ok(Holding::Active) if node == record.active.node => return Ok(Ok(Place::ReplicaOf(node))),
                Ok(Holding::Nothing) => {}
                Ok(Holding::Passive(incarnation)) if !lists(&record, node, &incarnation) => {}
                Ok(_) => any = true,
                Err(why) => {
                    let name = spore.nodes().get(&node).map_or_else(|| node.to_string(), |n| n.name.clone());
                    return Ok(Err(format!(
                        "node {name} may run it and cannot be asked ({why}); if that node is gone for good: mycelium vm rm {vm}"
                    )));
                }
            }
        }
        if any {
            return Ok(Err("it is just being taken over or started elsewhere".to_owned()));
        }
        tracing::info!(%vm, generation = record.generation.0, "all processes of the VM are gone; it starts anew");
        spore.forget_dead(&record).await.map_err(undecided)?;
        Ok(Err("its old record has just been dropped".to_owned()))
    }

    /// What is here, the asker's own claim aside.
    fn holds_besides_claim(&self, vm: &VmId) -> Holding {
        self.find(vm.as_str()).ok().and_then(|keeper| keeper.holding()).unwrap_or(Holding::Nothing)
    }

    /// Gives up a place whose VMM did not start.
    pub(crate) fn withdraw(&self, vm: &str) {
        let mut claims = self.claims.lock();
        if claims.remove(vm).is_some() {
            let _ = VmFolder::of(&self.config.folder, vm).remove_if_there();
        }
    }

    /// Follows the VMM of a pod that has joined.
    pub(crate) async fn group_started(&self, spore: &Arc<Spore>, vm: &str, pid: u32) -> Result<Vm, VmError> {
        // Told twice, or found already by a daemon that was started meanwhile.
        if let Some(view) = self.find(vm).ok().map(|keeper| keeper.view()).filter(|view| view.pid == pid) {
            return Ok(view);
        }
        let claim = self.claims.lock().get(vm).cloned();
        let claim = claim.filter(|c| c.told).ok_or_else(|| VmError::Unknown(vm.to_owned()))?;
        let mut entry = claim.entry;
        let folder = VmFolder::of(&self.config.folder, vm);
        let started = start_time(pid).unwrap_or(0);
        entry.process = Some((pid, started));
        folder.save(&entry)?;
        let api = entry.pod.as_ref().map(|pod| pod.api.clone()).unwrap_or_default();
        let process = Process::adopt(pid, started, &api).await;
        let process = process.ok_or_else(|| VmError::Network("the pod's VMM is gone already".to_owned()))?;
        let keeper = Keeper::start(entry, folder, Some(process), spore.clone(), api);
        self.insert(vm, keeper.clone());
        self.claims.lock().remove(vm);
        Ok(keeper.view())
    }
}

/// The nodes whose processes may run the VM.
fn members(record: &Record) -> Vec<NodeId> {
    let mut nodes = vec![record.active.node];
    nodes.extend(record.in_sync.iter().map(|listed| listed.member.node));
    nodes.dedup();
    nodes
}

/// Whether a passive of that incarnation may take over.
fn lists(record: &Record, node: NodeId, incarnation: &str) -> bool {
    let is_it = |member: &Member| member.node == node && format!("{:?}", member.incarnation) == incarnation;
    record.in_sync.iter().any(|listed| is_it(&listed.member))
}

async fn held_by(spore: &Spore, node: NodeId, vm: &VmId) -> Result<Holding, String> {
    let ask = encode(&Ask::Holds { vm: vm.to_string() });
    let told = spore.request(node, &ask, limits::QUESTION).await.map_err(|e| e.to_string())?;
    match decode(&told)? {
        Told::Holds(holding) => Ok(holding),
        other => Err(format!("it answered {other:?}")),
    }
}
