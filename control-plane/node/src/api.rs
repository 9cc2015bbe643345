//! The daemon's gRPC service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mycelium_api::node_server::{Node, NodeServer};
use mycelium_api::{
    Capacity, FailoverReply, FailoverVmRequest, GroupStartedRequest, InitRequest, Invitation, InviteRequest,
    JoinGroupReply, JoinGroupRequest, JoinRequest, LeaveReply, LeaveRequest, ListVmsRequest, Member,
    NetworkStatus, ProtectVmRequest, RecoverRequest, RemoveVmReply, RemoveVmRequest, RunVmRequest,
    StatusRequest, StopVmRequest, Vm, VmList,
};
use mycelium_ram_core::settle::{Reply, Request as RecordRequest};
use mycelium_ram_core::{NodeId, VmId};
use mycelium_spores::{MemberStatus, Reported, Spore, SporeError};
use tonic::{Request, Response, Status};

use crate::daemon::{Daemon, DaemonError};
use crate::keeper::Order;
use crate::limits;
use crate::vms::VmError;

/// The service, for one daemon.
#[derive(Debug)]
pub(crate) struct NodeService(Arc<Daemon>);

type Answer<T> = Result<Response<T>, Status>;

impl From<VmError> for Status {
    fn from(error: VmError) -> Self {
        let text = error.to_string();
        match error {
            VmError::Spec(_) | VmError::Policy(_) => Self::invalid_argument(text),
            VmError::Exists(..) | VmError::GroupHere(_) => Self::already_exists(text),
            VmError::Unknown(_) => Self::not_found(text),
            VmError::Outside
            | VmError::Runs(_)
            | VmError::Unprotected(..)
            | VmError::OfPods(..)
            | VmError::Awaited(..)
            | VmError::Alone(..)
            | VmError::Unseen(_) => Self::failed_precondition(text),
            VmError::Disks(_) | VmError::KeepsDisks { .. } => Self::failed_precondition(text),
            VmError::Full | VmError::NoRoom { .. } => Self::resource_exhausted(text),
            VmError::Process(_) | VmError::Files(_) | VmError::Network(_) | VmError::GroupWaits(..) => {
                Self::unavailable(text)
            }
        }
    }
}

fn refused(error: &DaemonError) -> Status {
    Status::failed_precondition(error.to_string())
}

fn undecided(error: &SporeError) -> Status {
    Status::unavailable(error.to_string())
}

impl NodeService {
    pub(crate) fn server(daemon: Arc<Daemon>) -> NodeServer<Self> {
        NodeServer::new(Self(daemon))
    }

    fn spore(&self) -> Result<Arc<Spore>, Status> {
        self.0.spore().ok_or_else(|| VmError::Outside.into())
    }

    async fn network(&self) -> NetworkStatus {
        let Some(spore) = self.0.spore() else {
            return NetworkStatus {
                state: "outside".to_owned(),
                node: self.0.node().to_string(),
                name: self.0.config.name.clone(),
                survives: "This node is in no network.".to_owned(),
                ..NetworkStatus::default()
            };
        };
        let status = spore.status().await;
        let reports: BTreeMap<NodeId, Reported> =
            spore.reports().await.unwrap_or_default().into_iter().collect();
        let leader = status.leader;
        let member = |m: &MemberStatus| Member {
            node: m.node.to_string(),
            name: m.name.clone(),
            addrs: m.addrs.iter().map(ToString::to_string).collect(),
            votes: m.votes,
            leads: leader == Some(m.node),
            alive: m.alive.map_or("unknown", |alive| if alive { "yes" } else { "no" }).to_owned(),
            heard_ms: m.heard_ms,
            skew_ms: m.skew_ms,
            capacity: reports.get(&m.node).map(|r| Capacity {
                free_memory_bytes: r.report.free_memory_bytes,
                total_memory_bytes: r.report.total_memory_bytes,
                vcpus: r.report.vcpus,
                kvm: r.report.kvm,
            }),
        };
        NetworkStatus {
            state: "member".to_owned(),
            network: spore.network().to_string(),
            node: spore.node().to_string(),
            name: spore.nodes().get(&spore.node()).map(|n| n.name.clone()).unwrap_or_default(),
            leader: leader.map(|l| l.to_string()).unwrap_or_default(),
            term: status.term,
            members: status.members.iter().map(member).collect(),
            records: status.records as u64,
            survives: status.survives,
        }
    }

    /// The VMs as their nodes report them, and those of nodes that are not heard.
    async fn all_vms(&self) -> Result<Vec<Vm>, Status> {
        let spore = self.spore()?;
        let mut vms = self.0.vms.list();
        let reports = spore.reports().await.map_err(|e| undecided(&e))?;
        for (node, reported) in reports.iter().filter(|(node, _)| *node != spore.node()) {
            let fresh = Duration::from_millis(reported.age_ms) < limits::REPLICA_PATIENCE;
            let listed = reported.report.extra["vms"].as_array().into_iter().flatten();
            vms.extend(listed.map(|vm| told(vm, *node, fresh)));
        }
        for record in spore.state().records.values() {
            // A report may be older than a takeover; the record is not.
            let deposed = |vm: &&mut Vm| {
                vm.name == record.vm.as_str()
                    && vm.role == "active"
                    && vm.node != record.active.node.to_string()
            };
            for vm in vms.iter_mut().filter(deposed) {
                "lost".clone_into(&mut vm.role);
                vm.state = format!("another node runs it as generation {}", record.generation.0);
                vm.protected = false;
            }
            let here = vms.iter().any(|vm| vm.name == record.vm.as_str() && vm.role == "active");
            if !here {
                vms.push(from_record(record, &spore));
            }
        }
        vms.sort_by(|a, b| (&a.name, &a.role, &a.node_name).cmp(&(&b.name, &b.role, &b.node_name)));
        Ok(vms)
    }
}

/// A VM in another node's report.
fn told(vm: &serde_json::Value, node: NodeId, fresh: bool) -> Vm {
    let text = |key: &str| vm[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| vm[key].as_u64().unwrap_or(0);
    Vm {
        name: text("name"),
        node_name: text("node_name"),
        node: node.to_string(),
        role: if fresh { text("role") } else { "lost".to_owned() },
        state: if fresh { text("state") } else { "its node is not heard".to_owned() },
        reason: text("reason"),
        protected: fresh && vm["protected"] == true,
        generation: number("generation"),
        wanted_protection: vm["wanted_protection"] == true,
        replica_node_name: text("replica_node_name"),
        placement: text("placement"),
        ram_bytes: number("ram_bytes"),
        disk_bytes: number("disk_bytes"),
        disk_left_bytes: number("disk_left_bytes"),
        trouble: text("trouble"),
        group: text("group"),
        ..Vm::default()
    }
}

/// A VM nobody reports: all that is known is the arbiter's record.
fn from_record(record: &mycelium_ram_core::record::Record, spore: &Spore) -> Vm {
    let node = record.active.node;
    Vm {
        name: record.vm.to_string(),
        node_name: spore.nodes().get(&node).map(|n| n.name.clone()).unwrap_or_default(),
        node: node.to_string(),
        role: "lost".to_owned(),
        state: "in the arbiter's record only".to_owned(),
        reason: "no node reports it as running".to_owned(),
        generation: record.generation.0,
        ..Vm::default()
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn status(&self, _: Request<StatusRequest>) -> Answer<NetworkStatus> {
        Ok(Response::new(self.network().await))
    }

    async fn init(&self, _: Request<InitRequest>) -> Answer<NetworkStatus> {
        self.0.enter(Spore::found).await.map_err(|e| refused(&e))?;
        Ok(Response::new(self.network().await))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Answer<NetworkStatus> {
        let text = request.into_inner().invitation;
        let joined = self.0.enter(|config| async move { Spore::join(config, &text).await }).await;
        joined.map_err(|e| refused(&e))?;
        Ok(Response::new(self.network().await))
    }

    async fn invite(&self, request: Request<InviteRequest>) -> Answer<Invitation> {
        let valid_for_s = request.into_inner().valid_for_s;
        if !(1..=limits::INVITATION_S).contains(&valid_for_s) {
            let why = format!("an invitation is valid for 1 to {} seconds", limits::INVITATION_S);
            return Err(Status::invalid_argument(why));
        }
        let invitation = self.spore()?.invite(Duration::from_secs(valid_for_s));
        let text = invitation.map_err(|e| undecided(&e))?.to_string();
        Ok(Response::new(Invitation { text, valid_for_s }))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Answer<LeaveReply> {
        self.0.leave().await?;
        Ok(Response::new(LeaveReply {}))
    }

    async fn recover(&self, _: Request<RecoverRequest>) -> Answer<NetworkStatus> {
        self.0.enter(Spore::recover).await.map_err(|e| refused(&e))?;
        Ok(Response::new(self.network().await))
    }

    async fn list_vms(&self, _: Request<ListVmsRequest>) -> Answer<VmList> {
        Ok(Response::new(VmList { vms: self.all_vms().await? }))
    }

    async fn run_vm(&self, request: Request<RunVmRequest>) -> Answer<Vm> {
        let spore = self.spore()?;
        Ok(Response::new(self.0.vms.run(&spore, request.get_ref()).await?))
    }

    async fn protect_vm(&self, request: Request<ProtectVmRequest>) -> Answer<Vm> {
        let ProtectVmRequest { name, protect } = request.into_inner();
        let keeper = self.0.vms.find_own(&name)?;
        if protect && keeper.view().role == "run" {
            let why = "it was started without; stop it, and start it with --protect";
            return Err(VmError::Alone(name, why).into());
        }
        keeper.order(Order::Protect(protect)).await;
        Ok(Response::new(keeper.view()))
    }

    async fn failover_vm(&self, request: Request<FailoverVmRequest>) -> Answer<FailoverReply> {
        let name = request.into_inner().name;
        let keeper = self.0.vms.find(&name)?;
        let view = keeper.view();
        if view.role != "active" || !keeper.has_replica_in_sync() {
            return Err(VmError::Unprotected(name, view.state).into());
        }
        keeper.order(Order::Kill).await;
        Ok(Response::new(FailoverReply { node_name: view.replica_node_name }))
    }

    async fn stop_vm(&self, request: Request<StopVmRequest>) -> Answer<Vm> {
        let keeper = self.0.vms.find_own(&request.into_inner().name)?;
        keeper.order(Order::Stop).await;
        Ok(Response::new(keeper.view()))
    }

    async fn remove_vm(&self, request: Request<RemoveVmRequest>) -> Answer<RemoveVmReply> {
        let RemoveVmRequest { name, discard_disks } = request.into_inner();
        let spore = self.spore()?;
        let all: Vec<Vm> = self.all_vms().await?.into_iter().filter(|vm| vm.name == name).collect();
        let elsewhere = all.iter().any(|vm| vm.role == "active");
        let vm = VmId::new(name.clone()).map_err(|_| VmError::Unknown(name.clone()))?;
        let listed = match spore.answer(vm.clone(), RecordRequest::Read).await.map_err(|e| undecided(&e))? {
            Reply::Record(Some(record)) => record.in_sync,
            _ => Vec::new(),
        };
        let waits = |vm: &&Vm| {
            vm.role == "passive" && listed.iter().any(|listed| listed.member.node.to_string() == vm.node)
        };
        if let Some(waiting) = all.iter().find(waits).filter(|_| !elsewhere) {
            return Err(VmError::Awaited(name, waiting.node_name.clone()).into());
        }
        let known_here = match self.0.vms.find(&name).map(|keeper| keeper.view()) {
            // A pod that waits to be a replica goes on, and starts the VM anew once there is no record.
            Ok(view) if !view.group.is_empty() && view.role == "passive" => true,
            Ok(view) if !view.group.is_empty() => return Err(VmError::OfPods(name, view.group).into()),
            Ok(_) => {
                self.0.vms.forget_ended(&name, discard_disks)?;
                true
            }
            Err(_) => false,
        };
        let forgotten = if elsewhere { None } else { spore.forget(vm).await.map_err(|e| undecided(&e))? };
        if !known_here && forgotten.is_none() {
            return Err(VmError::Unknown(name).into());
        }
        Ok(Response::new(RemoveVmReply {}))
    }

    async fn join_group(&self, request: Request<JoinGroupRequest>) -> Answer<JoinGroupReply> {
        let spore = self.spore()?;
        Ok(Response::new(self.0.vms.join_group(&spore, request.into_inner()).await?))
    }

    async fn group_started(&self, request: Request<GroupStartedRequest>) -> Answer<Vm> {
        let GroupStartedRequest { vm, pid } = request.into_inner();
        let spore = self.spore()?;
        if pid == 0 {
            self.0.vms.withdraw(&vm);
            return Ok(Response::new(Vm::default()));
        }
        Ok(Response::new(self.0.vms.group_started(&spore, &vm, pid).await?))
    }
}
