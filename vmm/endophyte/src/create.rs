//! A process that is told by its API which machine to make (`endophyte run --wait`).
//!
//! ```text
//!   main thread:  listen ── serve until Create ──> sandbox ──> thread "api" goes on serving ── build ── answer Create ── ...
//! ```
//! What the sandbox allows follows from the spec, and a thread that was started before would stay outside it. So until Create has
//! come there is one thread, which serves the API itself; whoever it serves then is the user who started it, by the socket's
//! mode. The connections are handed to a thread that is confined.

use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use endophyte_api::{CreateRequest, CreateResponse};
use endophyte_vmm::spec::VmSpec;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tonic::Status;

use crate::api::Api;
use crate::desk::Desk;
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::Signals;

/// State on the board of a process that waits for its machine.
pub(crate) const WAITING: &str = "waiting for create";
/// State of one whose machine stands before its first instruction.
pub(crate) const CREATED: &str = "created";

/// A machine that is asked for, and who waits for it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) spec: VmSpec,
    tell: oneshot::Sender<Result<CreateResponse, Status>>,
}

impl Asked {
    /// A request with a spec that can be: the machine's, and who gives the answer.
    pub(crate) fn parse(
        request: &CreateRequest,
    ) -> Result<(Asked, oneshot::Receiver<Result<CreateResponse, Status>>), Status> {
        let folder = Some(Path::new(&request.folder)).filter(|_| !request.folder.is_empty());
        if folder.is_some_and(|folder| !folder.is_absolute()) {
            return Err(Status::invalid_argument(format!("folder: {:?} is not absolute", request.folder)));
        }
        let spec = VmSpec::parse_in(&request.spec, folder);
        let spec = spec.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (tell, answer) = oneshot::channel();
        Ok((Asked { spec, tell }, answer))
    }

    /// The machine is there, or why not.
    pub(crate) fn answer(self, made: Result<(), &Exit>) {
        let answer = made.map(|()| CreateResponse {});
        // Whoever asked may have hung up; the machine is there all the same.
        let _ =
            self.tell.send(answer.map_err(|exit| Status::failed_precondition(format!("{:#}", exit.error))));
    }
}

/// The desk's end: takes one machine's order.
pub(crate) type Orders = Sender<Asked>;

/// The API before there is a machine.
#[derive(Debug)]
pub(crate) struct Waiting {
    runtime: Runtime,
    asked: Receiver<Asked>,
}

impl Waiting {
    /// Where the desk leaves a machine's order.
    pub(crate) fn new() -> Result<(Waiting, Orders), Exit> {
        let runtime = Builder::new_current_thread().enable_all().build().or_exit(Failure::Host)?;
        let (orders, asked) = channel(1);
        Ok((Waiting { runtime, asked }, orders))
    }

    /// Serves until a machine is asked for; `None` when the process is told to stop instead.
    pub(crate) fn serve(
        mut self,
        socket: &Path,
        desk: &Arc<Desk>,
        signals: &Signals,
    ) -> Result<Option<(Asked, Api, Runtime)>, Exit> {
        let stop = signals.latch().or_exit(Failure::Host)?;
        let api = Api::on_runtime(socket, desk.clone(), self.runtime.handle()).or_exit(Failure::Host)?;
        let asked = self.runtime.block_on(async {
            tokio::select! {
                asked = self.asked.recv() => Ok(asked),
                () = stop.wait() => Err(()),
            }
        });
        match asked {
            Ok(Some(asked)) => Ok(Some((asked, api, self.runtime))),
            Ok(None) => {
                Err(anyhow!("the API ended before it was asked for a machine")).or_exit(Failure::Host)
            }
            Err(()) => {
                // The answer to Stop leaves.
                let ended = self.runtime.block_on(self.runtime.spawn_blocking(move || drop(api)));
                ended.or_exit(Failure::Host)?;
                Ok(None)
            }
        }
    }
}
