//! The calls, one function each.

use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use endophyte_api::vm_server::Vm;
use endophyte_api::{
    ConsoleInput, ConsoleOutput, InfoRequest, PauseRequest, PauseResponse, ResumeRequest, ResumeResponse,
    SetAllowedRequest, SetAllowedResponse, SetReplicasRequest, SetReplicasResponse, StopRequest,
    StopResponse, VmInfo, WatchRequest,
};
use rhizomorph_link::{PeerKey, Ticket};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::console::serve_console;
use super::ended;
use super::info::vm_info;
use crate::desk::{Desk, Peering};
use crate::limits::{ALLOWED_KEYS, API_PATIENCE, API_QUEUE};

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
        let peering = self.desk.peering.as_ref();
        peering.ok_or_else(|| {
            Status::failed_precondition(format!(
                "{call}: this VM runs without protection; start it with `endophyte active` to give it replicas"
            ))
        })
    }

    /// Orders the guest to stand or to go on, and waits until it does.
    async fn hold(&self, hold: bool) -> Result<(), Status> {
        let mut board = self.desk.board.subscribe();
        if !self.desk.hold(hold) {
            return Err(Status::failed_precondition(
                "the guest does not run here (yet); ask the process that is its active",
            ));
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

fn parse_all<T: FromStr<Err: std::fmt::Display>>(field: &str, texts: &[String]) -> Result<Vec<T>, Status> {
    let parse =
        |text: &String| text.parse().map_err(|e| Status::invalid_argument(format!("{field}: {text:?}: {e}")));
    texts.iter().map(parse).collect()
}

#[tonic::async_trait]
impl Vm for Service {
    type WatchStream = Answers<VmInfo>;
    type ConsoleStream = Answers<ConsoleOutput>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<VmInfo>, Status> {
        Ok(Response::new(vm_info(&self.desk)))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (to_client, answers) = mpsc::channel(API_QUEUE);
        tokio::spawn(watch_board(self.desk.clone(), to_client, self.end.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
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
        let tickets: Vec<Ticket> = parse_all("tickets", &request.into_inner().tickets)?;
        peering.replicas.set(&tickets).map_err(|e| Status::invalid_argument(e.to_string()))?;
        Ok(Response::new(SetReplicasResponse {}))
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
