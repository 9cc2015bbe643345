//! The calls, one function each.

use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use endophyte_api::vm_server::Vm;
use endophyte_api::{
    AttachDiskRequest, AttachNetRequest, AttachResponse, BootRequest, BootResponse, CancelMigrationRequest,
    CancelMigrationResponse, ConsoleInput, ConsoleOutput, CreateRequest, CreateResponse, DetachRequest,
    DetachResponse, HandOverRequest, HandOverResponse, InfoRequest, MetricsRequest, MetricsResponse,
    MigrateProgress, MigrateRequest, PauseRequest, PauseResponse, Policy, PressPowerButtonRequest,
    PressPowerButtonResponse, ResizeConsoleRequest, ResizeConsoleResponse, ResumeRequest, ResumeResponse,
    SetAllowedRequest, SetAllowedResponse, SetBalloonRequest, SetBalloonResponse, SetReplicasRequest,
    SetReplicasResponse, SnapshotProgress, SnapshotRequest, StopRequest, StopResponse, VmInfo, WatchRequest,
};
use endophyte_vmm::machine::Machine;
use mycelium_ram::active::HandedOver;
use mycelium_ram_core::NodeId;
use rhizomorph_link::{PeerKey, Ticket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::console::serve_console;
use super::ended;
use super::info::vm_info;
use super::policy::{Wanted, policy};
use crate::create::{Asked, CREATED};
use crate::desk::{Desk, Order, Peering};
use crate::limits::{ALLOWED_KEYS, API_PATIENCE, API_QUEUE, DETACH_PATIENCE, DETACH_PATIENCE_MAX};
use crate::metrics::prometheus;
use crate::migrate::Wish;
use crate::plug::Plug;

/// The service on one desk.
#[derive(Debug)]
pub(super) struct Service {
    desk: Arc<Desk>,
    end: watch::Receiver<bool>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(super) fn new(desk: Arc<Desk>, end: watch::Receiver<bool>) -> Self {
        Self { desk, end }
    }

    fn peering(&self, call: &str) -> Result<&Peering, Status> {
        if self.desk.size().is_none() {
            return Err(self.nobody(""));
        }
        let peering = self.desk.peering.as_ref();
        peering.ok_or_else(|| unprotected(call))
    }

    fn machine(&self) -> Result<Arc<Machine>, Status> {
        self.desk.machine().ok_or_else(|| self.nobody(NOT_ACTIVE))
    }

    /// Why nobody carries an order out.
    fn nobody(&self, why: &str) -> Status {
        Status::failed_precondition(if self.desk.size().is_none() {
            "no machine yet: Create first"
        } else {
            why
        })
    }

    /// Hands over an order about devices; who gives the answer.
    fn plug<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, Status>>) -> Plug,
    ) -> Result<oneshot::Receiver<Result<T, Status>>, Status> {
        let (tell, answer) = oneshot::channel();
        if self.desk.order(Order::Plug(order(tell))) {
            return Ok(answer);
        }
        self.machine()?;
        Err(Status::failed_precondition(
            "a protected VM's devices cannot change yet: its replicas would have to change theirs at the same instant; stop \
             it, change its spec on every node and start it again",
        ))
    }

    /// Orders the guest to stand or to go on, and waits until it does.
    async fn hold(&self, hold: bool) -> Result<(), Status> {
        let mut board = self.desk.board.subscribe();
        if !self.desk.hold(hold) {
            return Err(self.nobody(NOT_ACTIVE));
        }
        // Under `--on-loss halt` a guest may keep standing for lack of a replica.
        let obeyed = board.wait_for(|s| s.held == hold || !hold && s.state == "halted");
        match timeout(API_PATIENCE, obeyed).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the guest did not obey within {} s; look at last_trouble",
                API_PATIENCE.as_secs()
            ))),
        }
    }
}

const NOT_ACTIVE: &str = "the guest does not run here (yet); ask the process that is its active";

fn unprotected(call: &str) -> Status {
    Status::failed_precondition(format!(
        "{call}: this VM runs without protection; start it with `endophyte active` to give it replicas"
    ))
}

/// What is said to those who are still waiting when the process ends.
fn ending() -> Status {
    Status::unavailable("the VM's process has ended")
}

fn parse_all<T: FromStr<Err: std::fmt::Display>>(field: &str, texts: &[String]) -> Result<Vec<T>, Status> {
    let parse =
        |text: &String| text.parse().map_err(|e| Status::invalid_argument(format!("{field}: {text:?}: {e}")));
    texts.iter().map(parse).collect()
}

#[tonic::async_trait]
impl Vm for Service {
    type WatchStream = Answers<VmInfo>;
    type ConsoleStream = Answers<ConsoleOutput>;
    type SnapshotStream = Answers<SnapshotProgress>;
    type MigrateStream = Answers<MigrateProgress>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<VmInfo>, Status> {
        Ok(Response::new(vm_info(&self.desk)))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (to_client, answers) = mpsc::channel(API_QUEUE);
        tokio::spawn(watch_board(self.desk.clone(), to_client, self.end.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        let made = || Status::failed_precondition("this process has its machine; start another with --wait");
        let orders = self.desk.orders.as_ref().filter(|_| self.desk.size().is_none()).ok_or_else(made)?;
        let (asked, answer) = Asked::parse(&request.into_inner())?;
        orders.try_send(asked).map_err(|_| made())?;
        answer.await.map_err(|_| ending())?.map(Response::new)
    }

    async fn boot(&self, _: Request<BootRequest>) -> Result<Response<BootResponse>, Status> {
        self.machine()?;
        if self.desk.board.borrow().state != CREATED {
            return Err(Status::failed_precondition("the guest has begun; Resume lets a paused one go on"));
        }
        self.hold(false).await?;
        Ok(Response::new(BootResponse {}))
    }

    async fn pause(&self, _: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        self.hold(true).await?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        self.hold(false).await?;
        Ok(Response::new(ResumeResponse {}))
    }

    async fn set_replicas(
        &self,
        request: Request<SetReplicasRequest>,
    ) -> Result<Response<SetReplicasResponse>, Status> {
        let peering = self.peering("SetReplicas")?;
        if self.desk.board.borrow().role == "run" {
            return Err(unprotected("SetReplicas"));
        }
        let tickets: Vec<Ticket> = parse_all("tickets", &request.into_inner().tickets)?;
        peering.replicas.set(&tickets).map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(SetReplicasResponse {}))
    }

    async fn hand_over(
        &self,
        request: Request<HandOverRequest>,
    ) -> Result<Response<HandOverResponse>, Status> {
        self.peering("HandOver")?;
        let node = request.into_inner().node;
        let to = (!node.is_empty()).then(|| parse_all::<PeerKey>("node", &[node])).transpose()?;
        let to = to.and_then(|keys| keys.first().map(|key| NodeId(key.0)));
        let (tell, answer) = oneshot::channel();
        // Who asked may have gone.
        let tell = HandedOver(Box::new(|how| _ = tell.send(how)));
        if !self.desk.hand_over(to, tell) {
            return Err(self.nobody(NOT_ACTIVE));
        }
        let (member, generation) = answer
            .await
            .map_err(|_| ending())?
            .map_err(|why| Status::failed_precondition(why.to_string()))?;
        Ok(Response::new(HandOverResponse { node: member.node.to_string(), generation: generation.0 }))
    }

    async fn set_policy(&self, request: Request<Policy>) -> Result<Response<Policy>, Status> {
        self.peering("SetPolicy")?;
        let mut board = self.desk.board.subscribe();
        let asked = request.into_inner();
        let nobody = || self.nobody(NOT_ACTIVE);
        if asked == Policy::default() {
            return policy(&board.borrow()).map(Response::new).ok_or_else(nobody);
        }
        let Wanted { pace, mode } = Wanted::read(&asked)?;
        if !self.desk.set_policy(pace, mode) {
            return Err(nobody());
        }
        let is_so = |status: &crate::rundir::Status| {
            pace.is_none_or(|pace| status.pace == Some(pace))
                && mode.is_none_or(|mode| status.mode == Some(mode))
        };
        match timeout(API_PATIENCE, board.wait_for(is_so)).await {
            Ok(_) => policy(&self.desk.board.borrow()).map(Response::new).ok_or_else(nobody),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the arbiter's record did not have it within {} s; it will when the arbiter answers",
                API_PATIENCE.as_secs()
            ))),
        }
    }

    async fn set_allowed(
        &self,
        request: Request<SetAllowedRequest>,
    ) -> Result<Response<SetAllowedResponse>, Status> {
        let peering = self.peering("SetAllowed")?;
        let keys: Vec<PeerKey> = parse_all("keys", &request.into_inner().keys)?;
        if self.desk.reach().is_none() {
            return Err(Status::failed_precondition("this process listens for no active; ask a passive"));
        }
        if keys.len() > ALLOWED_KEYS {
            let said =
                format!("keys: {} are named, at most {ALLOWED_KEYS} are taken; name fewer", keys.len());
            return Err(Status::invalid_argument(said));
        }
        peering.allowed.set(keys);
        self.desk.board.send_modify(|_| ());
        Ok(Response::new(SetAllowedResponse {}))
    }

    async fn console(
        &self,
        request: Request<Streaming<ConsoleInput>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let (to_client, answers) = mpsc::channel(API_QUEUE);
        tokio::spawn(serve_console(self.desk.clone(), request.into_inner(), to_client, self.end.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let SnapshotRequest { path, stop } = request.into_inner();
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            let said = format!(
                "path: {} is relative to nothing this process knows; make it absolute",
                path.display()
            );
            return Err(Status::invalid_argument(said));
        }
        let (tell, answers) = mpsc::channel(API_QUEUE);
        if self.desk.order(Order::Snapshot { path, stop, tell }) {
            return Ok(Response::new(Box::pin(ReceiverStream::new(answers))));
        }
        Err(self
            .nobody("only a VM without protection can be saved to a file; a protected one has its replica"))
    }

    async fn migrate(
        &self,
        request: Request<MigrateRequest>,
    ) -> Result<Response<Self::MigrateStream>, Status> {
        let (tell, answers) = mpsc::channel(API_QUEUE);
        let wish = Wish::parse(&request.into_inner(), tell)?;
        if self.desk.order(Order::Migrate(wish)) {
            return Ok(Response::new(Box::pin(ReceiverStream::new(answers))));
        }
        Err(self.nobody(
            "a protected VM is not migrated, nor is one that does not run here: give it a replica at the destination \
             (SetReplicas) and stop the active, and the replica takes over",
        ))
    }

    async fn cancel_migration(
        &self,
        _: Request<CancelMigrationRequest>,
    ) -> Result<Response<CancelMigrationResponse>, Status> {
        if self.desk.migration.cancel("by order of the API") {
            return Ok(Response::new(CancelMigrationResponse {}));
        }
        Err(self.nobody("no migration is under way"))
    }

    async fn press_power_button(
        &self,
        _: Request<PressPowerButtonRequest>,
    ) -> Result<Response<PressPowerButtonResponse>, Status> {
        self.machine()?.press_power_button();
        Ok(Response::new(PressPowerButtonResponse {}))
    }

    async fn set_balloon(
        &self,
        request: Request<SetBalloonRequest>,
    ) -> Result<Response<SetBalloonResponse>, Status> {
        let pages = request.into_inner().bytes / 4096;
        let set = self.machine()?.set_balloon(pages);
        set.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(SetBalloonResponse {}))
    }

    async fn attach_disk(
        &self,
        request: Request<AttachDiskRequest>,
    ) -> Result<Response<AttachResponse>, Status> {
        let answer = self.plug(|tell| Plug::Disk(request.into_inner().table, tell))?;
        answer.await.map_err(|_| ending())?.map(Response::new)
    }

    async fn attach_net(
        &self,
        request: Request<AttachNetRequest>,
    ) -> Result<Response<AttachResponse>, Status> {
        let answer = self.plug(|tell| Plug::Net(request.into_inner().table, tell))?;
        answer.await.map_err(|_| ending())?.map(Response::new)
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Result<Response<DetachResponse>, Status> {
        let DetachRequest { name, timeout_s } = request.into_inner();
        let patience = match timeout_s {
            0 => DETACH_PATIENCE,
            said => Duration::from_secs(said.into()).min(DETACH_PATIENCE_MAX),
        };
        let answer = self.plug(|tell| Plug::Out(name.clone(), tell))?;
        match timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|_| ending())?.map(Response::new),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the guest did not let go of {name} within {} s; it may be busy or paused, or its kernel lacks ACPI hot \
                 plug. The request stands: the device goes when the guest lets go of it",
                patience.as_secs()
            ))),
        }
    }

    async fn resize_console(
        &self,
        request: Request<ResizeConsoleRequest>,
    ) -> Result<Response<ResizeConsoleResponse>, Status> {
        let ResizeConsoleRequest { port, columns, rows } = request.into_inner();
        let short = |name: &str, value: u32| {
            u16::try_from(value)
                .map_err(|_| Status::invalid_argument(format!("{name}: {value} is no terminal's size")))
        };
        let (columns, rows) = (short("columns", columns)?, short("rows", rows)?);
        let port = usize::try_from(port).unwrap_or(usize::MAX);
        if self.machine()?.resize(port, columns, rows) {
            return Ok(Response::new(ResizeConsoleResponse {}));
        }
        Err(Status::not_found(format!(
            "the guest has no console port {port}; the spec's [[console]] tables make them"
        )))
    }

    async fn metrics(&self, _: Request<MetricsRequest>) -> Result<Response<MetricsResponse>, Status> {
        Ok(Response::new(MetricsResponse { text: prometheus(&*self.machine()?) }))
    }

    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        self.desk.stopper.stop();
        Ok(Response::new(StopResponse {}))
    }
}

/// Sends what the board shows, whenever it changes; a slow client gets the newest.
async fn watch_board(
    desk: Arc<Desk>,
    to_client: mpsc::Sender<Result<VmInfo, Status>>,
    end: watch::Receiver<bool>,
) {
    let mut board = desk.board.subscribe();
    loop {
        board.mark_unchanged();
        if to_client.send(Ok(vm_info(&desk))).await.is_err() {
            return;
        }
        tokio::select! {
            changed = board.changed() => if changed.is_err() { return },
            () = to_client.closed() => return,
            () = ended(end.clone()) => {
                // How it ended.
                let _ = to_client.try_send(Ok(vm_info(&desk)));
                return;
            }
        }
    }
}
