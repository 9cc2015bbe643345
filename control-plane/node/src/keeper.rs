//! One VM of this node: follows its process, and while that runs the guest, keeps it a replica.
//!
//! ```text
//!   process ──Watch──> info ──> view (what list, status and reports show)
//!                        └────> reconcile: runs here and a replica is wanted?
//!                                 none yet          ──> place ──> start a passive there ──> SetReplicas
//!                                 not well too long ──> give it up, avoid that node for a while
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use endophyte_api::{Role, SetAllowedRequest, SetReplicasRequest, VmInfo, WatchRequest};
use mycelium_api::Vm;
use mycelium_ram_core::record::Record;
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{NodeId, VmId};
use mycelium_spores::state::NodeEntry;
use mycelium_spores::{NodeReport, Spore};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::disks;
use crate::entry::{Entry, VmFolder};
use crate::limits;
use crate::peer::{Ask, Holding, Told, decode, encode};
use crate::place::{Candidate, Choice, choose};
use crate::process::Process;
use crate::vms::parse;

/// What can be asked of a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Protect(bool),
    /// End the process cleanly.
    Stop,
    /// Kill the process, so that the replica takes over.
    Kill,
}

/// A VM's keeper. Its task lives as long as the process.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Mutex<Shared>>,
    folder: VmFolder,
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
}

/// What the task and those who ask share.
#[derive(Debug)]
struct Shared {
    entry: Entry,
    node: NodeId,
    node_name: String,
    api: PathBuf,
    info: VmInfo,
    process: Option<Process>,
    replica_node_name: String,
    placement: String,
    trouble: String,
}

impl Keeper {
    /// Keeps a VM; without a process it only remembers how that ended.
    pub(crate) fn start(
        entry: Entry,
        folder: VmFolder,
        process: Option<Process>,
        spore: Arc<Spore>,
        api: PathBuf,
    ) -> Arc<Self> {
        let node = spore.node();
        let node_name = spore.nodes().get(&node).map(|n| n.name.clone()).unwrap_or_default();
        let shared = Shared {
            entry,
            node,
            node_name,
            api,
            info: process.as_ref().map(|p| p.info.clone()).unwrap_or_default(),
            process: process.clone(),
            replica_node_name: String::new(),
            placement: String::new(),
            trouble: String::new(),
        };
        let shared = Arc::new(Mutex::new(shared));
        let (orders, taken) = mpsc::channel(8);
        if let Some(process) = process {
            let follower = Follower {
                shared: shared.clone(),
                folder: folder.clone(),
                process,
                spore,
                replica: None,
                avoid: BTreeMap::new(),
                wrong_since: None,
                orders: taken,
            };
            tokio::spawn(follower.run());
        }
        Arc::new(Self { shared, folder, orders })
    }

    pub(crate) fn folder(&self) -> &VmFolder {
        &self.folder
    }

    /// As it is kept on disk.
    pub(crate) fn entry(&self) -> Entry {
        lock(&self.shared).entry.clone()
    }

    /// Has an order carried out; returns when it is.
    pub(crate) async fn order(&self, order: Order) {
        let (tell, done) = oneshot::channel();
        if self.orders.send((order, tell)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// For another node's daemon: lets its active in, if this is a passive. Returns the ticket.
    pub(crate) async fn serve_active(&self, from: NodeId) -> Option<String> {
        let process = {
            let shared = lock(&self.shared);
            (shared.role() == "passive").then(|| shared.process.clone()).flatten()
        };
        let mut process = process?;
        let allow = SetAllowedRequest { keys: vec![from.to_string()] };
        process.client.set_allowed(allow).await.ok()?;
        self.ticket().await
    }

    /// How an active reaches this passive.
    pub(crate) async fn ticket(&self) -> Option<String> {
        let mut process = lock(&self.shared).process.clone()?;
        let info = process.client.info(endophyte_api::InfoRequest {}).await.ok()?.into_inner();
        (!info.ticket.is_empty()).then_some(info.ticket)
    }

    /// What of the VM this is, for another node.
    pub(crate) fn holding(&self) -> Option<Holding> {
        let shared = lock(&self.shared);
        match shared.role() {
            "ended" => None,
            "starting" => Some(Holding::Starting),
            "passive" => Some(Holding::Passive(shared.info.incarnation.clone())),
            _ => Some(Holding::Active),
        }
    }

    /// How it is.
    pub(crate) fn view(&self) -> Vm {
        lock(&self.shared).view(&self.folder)
    }

    /// Whether a replica could take over now.
    pub(crate) fn has_replica_in_sync(&self) -> bool {
        lock(&self.shared).info.replicas.iter().any(|r| r.state == "in sync")
    }
}

impl Shared {
    fn role(&self) -> &'static str {
        if self.entry.ended.is_some() {
            return "ended";
        }
        match self.info.role() {
            Role::Active => "active",
            Role::Passive => "passive",
            Role::Run => "run",
            Role::Unspecified => "starting",
        }
    }

    fn view(&self, folder: &VmFolder) -> Vm {
        let ended = self.entry.ended.clone();
        let info = &self.info;
        Vm {
            name: self.entry.name.clone(),
            node_name: self.node_name.clone(),
            node: self.node.to_string(),
            role: self.role().to_owned(),
            state: match &ended {
                Some(_) => "ended".to_owned(),
                // A guest without protection stands by an operator's order only; the others say themselves why.
                None if info.paused && info.role() == Role::Run => "paused".to_owned(),
                None => info.state.clone(),
            },
            reason: ended.unwrap_or_else(|| info.reason.clone()),
            protected: self.entry.ended.is_none() && info.protected,
            generation: info.generation,
            wanted_protection: self.entry.protect,
            replica_node_name: self.replica_node_name.clone(),
            placement: self.placement.clone(),
            ram_bytes: self.entry.ram_bytes,
            disk_bytes: info.figures.map_or(0, |figures| figures.disk_bytes),
            disk_left_bytes: info.figures.map_or(0, |figures| figures.disk_left_bytes),
            pid: self.entry.process.map_or(0, |(pid, _)| pid),
            api: self.api.display().to_string(),
            folder: folder.path().display().to_string(),
            trouble: if self.trouble.is_empty() { info.last_trouble.clone() } else { self.trouble.clone() },
            group: self.entry.pod.as_ref().map(|pod| pod.group.clone()).unwrap_or_default(),
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A replica that was asked for.
#[derive(Debug)]
struct Replica {
    node: NodeId,
    ticket: String,
    well_at: Instant,
}

/// The keeper's task.
struct Follower {
    shared: Arc<Mutex<Shared>>,
    folder: VmFolder,
    process: Process,
    spore: Arc<Spore>,
    replica: Option<Replica>,
    avoid: BTreeMap<NodeId, Instant>,
    /// Since when the record, as this node last heard of it, has been other than it should be.
    wrong_since: Option<Instant>,
    orders: mpsc::Receiver<(Order, oneshot::Sender<()>)>,
}

impl Follower {
    async fn run(mut self) {
        let how = self.follow().await;
        let is_pods = self.is_pods();
        if is_pods {
            let _ = self.folder.remove_if_there();
        }
        {
            let mut shared = lock(&self.shared);
            shared.entry.ended = Some(how);
            shared.process = None;
            if !is_pods && let Err(error) = self.folder.save(&shared.entry) {
                tracing::warn!(%error, vm = shared.entry.name, "the VM's end cannot be written down");
            }
        }
        if is_pods {
            self.forget_if_dead().await;
        }
    }

    /// Follows the process to its end; returns how it ended.
    async fn follow(&mut self) -> String {
        let mut looks = interval(limits::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut client = self.process.client.clone();
        let mut watched = self.process.clone();
        let mut watch: Option<tonic::Streaming<VmInfo>> = None;
        loop {
            let next = async {
                match &mut watch {
                    Some(stream) => stream.message().await.ok().flatten(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                info = next => match info {
                    Some(info) => {
                        lock(&self.shared).info = info;
                        // Whatever it waits for, the process's end is heard.
                        tokio::select! { () = self.reconcile() => {} how = watched.end() => return how }
                    }
                    None => watch = None,
                },
                _ = looks.tick() => {
                    if watch.is_none() {
                        let asked = timeout(limits::QUESTION, client.watch(WatchRequest {})).await;
                        watch = asked.ok().and_then(Result::ok).map(tonic::Response::into_inner);
                    }
                    tokio::select! { () = self.reconcile() => {} how = watched.end() => return how }
                }
                Some((order, done)) = self.orders.recv() => {
                    if let Some(how) = self.carry_out(order).await {
                        drop(done);
                        return how;
                    }
                    let _ = done.send(());
                }
                how = watched.end() => return how,
            }
        }
    }

    async fn carry_out(&mut self, order: Order) -> Option<String> {
        match order {
            Order::Protect(protect) => {
                let entry = {
                    let mut shared = lock(&self.shared);
                    shared.entry.protect = protect;
                    shared.entry.clone()
                };
                if let Err(error) = self.folder.save(&entry) {
                    lock(&self.shared).trouble = format!("the wish for protection cannot be kept: {error}");
                }
                self.reconcile().await;
                None
            }
            Order::Stop => {
                let was_active = self.runs_guest();
                let how = self.process.stop().await;
                if was_active && let Some(replica) = self.replica.take() {
                    self.release(replica.node).await;
                }
                Some(how)
            }
            Order::Kill => Some(self.process.kill().await),
        }
    }

    fn runs_guest(&self) -> bool {
        lock(&self.shared).info.role() == Role::Active
    }

    fn is_pods(&self) -> bool {
        lock(&self.shared).entry.pod.is_some()
    }

    /// Drops the record of a pod's VM that ran here last and that no replica can take over.
    async fn forget_if_dead(&self) {
        if let Some(Some(record)) = self.read_record().await
            && self.names_me(&record)
            && record.in_sync.is_empty()
        {
            // Otherwise the next pod of the group does it.
            let _ = self.spore.forget_dead(&record).await;
        }
    }

    /// The VM's record as the arbiter has it; outer `None`: it does not answer.
    async fn read_record(&self) -> Option<Option<Record>> {
        let vm = VmId::new(self.name()).ok()?;
        match self.spore.answer(vm, Request::Read).await {
            Ok(Reply::Record(record)) => Some(record),
            _ => None,
        }
    }

    /// Whether this process is the record's active.
    fn names_me(&self, record: &Record) -> bool {
        let incarnation = format!("{:?}", record.active.incarnation);
        record.active.node == self.spore.node() && incarnation == lock(&self.shared).info.incarnation
    }

    /// A pod's passive whose VM has ended for good holds a place that a new start of the VM needs.
    async fn end_if_unrecorded(&mut self) {
        let is_passive = lock(&self.shared).info.role() == Role::Passive;
        if !is_passive || !self.is_pods() || !self.looks_wrong(|_, record| record.is_some()) {
            return;
        }
        // What this node last heard may be old: only the arbiter's own word counts.
        if self.read_record().await == Some(None) {
            tracing::warn!(vm = self.name(), "the VM has ended on its other node; this pod starts it anew");
            self.process.stop().await;
        }
    }

    /// Ends an active whose record was dropped while it could not be asked, and that somebody else has begun anew since.
    async fn end_if_replaced(&mut self) {
        if !self.looks_wrong(|me, record| record.is_none_or(|record| me.names_me(record))) {
            return;
        }
        if let Some(Some(record)) = self.read_record().await
            && !self.names_me(&record)
        {
            tracing::error!(vm = self.name(), now = %record.active.node, "the VM runs elsewhere; ending it here");
            self.process.kill().await;
        }
    }

    /// Whether what this node last heard of the record has been other than it should be for a while.
    fn looks_wrong(&mut self, is_right: impl Fn(&Self, Option<&Record>) -> bool) -> bool {
        let (state, name) = (self.spore.state(), self.name());
        let record = state.records.values().find(|record| record.vm.as_str() == name);
        if is_right(self, record) {
            self.wrong_since = None;
            return false;
        }
        self.wrong_since.get_or_insert_with(Instant::now).elapsed() > limits::REPLICA_PATIENCE
    }

    /// Brings the replica nearer to what is wanted; one step at a time.
    async fn reconcile(&mut self) {
        if !self.runs_guest() {
            return self.end_if_unrecorded().await;
        }
        self.end_if_replaced().await;
        let wanted = lock(&self.shared).entry.protect;
        self.judge();
        let gives_up =
            self.replica.as_ref().filter(|r| !wanted || r.well_at.elapsed() > limits::REPLICA_PATIENCE);
        if let Some(node) = gives_up.map(|r| r.node) {
            if wanted {
                self.avoid.insert(node, Instant::now());
            }
            self.give_up().await;
        }
        if wanted && self.replica.is_none() {
            self.place().await;
        }
    }

    /// Notes whether the replica is well.
    fn judge(&mut self) {
        let shared = lock(&self.shared);
        if let Some(replica) = &mut self.replica {
            let states = shared.info.replicas.iter().filter(|r| r.ticket == replica.ticket);
            if states.into_iter().any(|r| r.state == "in sync" || r.state == "joined") {
                replica.well_at = Instant::now();
            }
        }
    }

    async fn give_up(&mut self) {
        let Some(replica) = self.replica.take() else { return };
        let _ = self.process.client.set_replicas(SetReplicasRequest { tickets: Vec::new() }).await;
        lock(&self.shared).replica_node_name.clear();
        if self.is_pods() {
            return;
        }
        let (spore, vm) = (self.spore.clone(), self.name());
        // The node is probably gone; nobody waits for it.
        tokio::spawn(async move { release(&spore, replica.node, vm).await });
    }

    async fn release(&self, node: NodeId) {
        release(&self.spore, node, self.name()).await;
    }

    fn name(&self) -> String {
        lock(&self.shared).entry.name.clone()
    }

    /// Finds a node, has it start a passive, and hands its ticket to the active.
    async fn place(&mut self) {
        let entry = lock(&self.shared).entry.clone();
        self.avoid.retain(|_, since| since.elapsed() < limits::AVOID);
        let choice = match &entry.pod {
            Some(pod) => self.other_pod(&entry.name, &pod.group).await,
            None => self.best_node(&entry).await,
        };
        let choice = match choice {
            Ok(choice) => choice,
            Err(why) => {
                lock(&self.shared).placement = why;
                return;
            }
        };
        {
            let mut shared = lock(&self.shared);
            shared.placement = choice.why.clone();
            shared.replica_node_name = choice.name.clone();
        }
        if let Err(why) = self.start_replica(&entry, &choice).await {
            tracing::warn!(vm = entry.name, node = choice.name, %why, "no replica there");
            self.avoid.insert(choice.node, Instant::now());
            let mut shared = lock(&self.shared);
            shared.trouble = format!("replica on {}: {why}", choice.name);
            shared.replica_node_name.clear();
        }
    }

    async fn start_replica(&mut self, entry: &Entry, choice: &Choice) -> Result<(), String> {
        let vm = entry.name.clone();
        let ask = if entry.pod.is_some() {
            Ask::UsePassive { vm }
        } else {
            let spec = std::fs::read_to_string(self.folder.spec()).map_err(|e| e.to_string())?;
            let on_loss = entry.on_loss.clone();
            let disks = parse(&spec).map_err(|e| e.to_string())?;
            let disks = disks::ask_for(&disks).map_err(|e| e.to_string())?;
            match disks.is_empty() {
                true => Ask::StartPassive { vm, spec, on_loss },
                false => Ask::StartPassiveWithDisks { vm, spec, on_loss, mark: entry.mark.clone(), disks },
            }
        };
        let patience = if entry.pod.is_some() { limits::PEER_QUICK } else { limits::PEER };
        let told = self.spore.request(choice.node, &encode(&ask), patience).await;
        let told: Told = decode(&told.map_err(|e| e.to_string())?)?;
        let Told::Ticket(ticket) = told else { return Err("it did not answer with a ticket".to_owned()) };
        let tickets = SetReplicasRequest { tickets: vec![ticket.clone()] };
        self.process.client.set_replicas(tickets).await.map_err(|s| s.message().to_owned())?;
        self.replica = Some(Replica { node: choice.node, ticket, well_at: Instant::now() });
        lock(&self.shared).trouble.clear();
        Ok(())
    }

    async fn best_node(&self, entry: &Entry) -> Result<Choice, String> {
        let reports = self.fresh_reports().await?;
        let candidate = |(node, known): (&NodeId, &NodeEntry)| Candidate {
            node: *node,
            name: known.name.clone(),
            report: reports.get(node).cloned(),
            failed: self.avoid.contains_key(node),
        };
        let candidates: Vec<Candidate> = self.spore.nodes().iter().map(candidate).collect();
        choose(&candidates, self.spore.node(), entry.ram_bytes + limits::VMM_OVERHEAD_BYTES)
    }

    /// The node of another pod of the group, which waits to be the replica.
    async fn other_pod(&self, vm: &str, group: &str) -> Result<Choice, String> {
        let waits = |vm_there: &serde_json::Value| {
            vm_there["name"] == vm && vm_there["group"] == group && vm_there["role"] == "passive"
        };
        let has_one = |report: &NodeReport| report.extra["vms"].as_array().into_iter().flatten().any(waits);
        for (node, report) in self.fresh_reports().await? {
            if node != self.spore.node() && !self.avoid.contains_key(&node) && has_one(&report) {
                let name = self.spore.nodes().get(&node).map(|n| n.name.clone()).unwrap_or_default();
                let why = format!("{name} has another pod of group {group}");
                return Ok(Choice { node, name, why });
            }
        }
        Err(format!("no other node has a pod of group {group} that could hold a replica"))
    }

    async fn fresh_reports(&self) -> Result<BTreeMap<NodeId, NodeReport>, String> {
        let reports = self.spore.reports().await.map_err(|e| e.to_string())?;
        let fresh = |age_ms| Duration::from_millis(age_ms) < limits::REPLICA_PATIENCE;
        Ok(reports.into_iter().filter(|(_, r)| fresh(r.age_ms)).map(|(node, r)| (node, r.report)).collect())
    }
}

/// Tells a node that its replica is not needed any more.
async fn release(spore: &Spore, node: NodeId, vm: String) {
    let ask = encode(&Ask::StopPassive { vm });
    if let Err(error) = spore.request(node, &ask, limits::PROCESS_STOP).await {
        tracing::info!(%error, "a replica that is not needed could not be told so");
    }
}
