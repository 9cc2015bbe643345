//! containerd's task API. Version 2 and version 3 have the same calls under two names.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task as TaskApi;
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::{self, Code, Error, get_status};
use tokio::sync::Notify;

use crate::args::Args;
use crate::bundle::{Config, Role};
use crate::events::Publisher;
use crate::process::Exit;
use crate::rundir;
use crate::task::{Order, Task, TaskError};

const NO_EXEC: &str = "exec is not supported for VM images: there is no container inside to run a command in; \
                       use the guest's console (kubectl attach) or its network";

/// A pod's tasks.
#[derive(Debug)]
pub(crate) struct Service {
    args: Args,
    publisher: Publisher,
    tasks: Mutex<HashMap<String, Arc<Task>>>,
    /// Told when the last task is gone and containerd wants the shim to end.
    pub(crate) done: Arc<Notify>,
}

type Reply<T> = ttrpc::Result<T>;

fn refuse(code: Code, why: impl ToString) -> Error {
    Error::RpcStatus(get_status(code, why))
}

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        let code = match &error {
            TaskError::State { .. } => Code::FAILED_PRECONDITION,
            TaskError::Bundle(_) | TaskError::Image(_) | TaskError::Console(_) => Code::INVALID_ARGUMENT,
            _ => Code::UNKNOWN,
        };
        refuse(code, error)
    }
}

impl Service {
    pub(crate) fn new(args: Args, publisher: Publisher) -> Self {
        Self { args, publisher, tasks: Mutex::default(), done: Arc::default() }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Task>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str, exec_id: &str) -> Reply<Arc<Task>> {
        if !exec_id.is_empty() {
            return Err(refuse(Code::NOT_FOUND, format!("there is no process {exec_id}: {NO_EXEC}")));
        }
        let found = self.tasks().get(id).cloned();
        found.ok_or_else(|| refuse(Code::NOT_FOUND, format!("there is no task {id} in this pod")))
    }

    fn order(&self, req: &api::CreateTaskRequest) -> Order {
        Order {
            id: req.id.clone(),
            bundle: PathBuf::from(&req.bundle),
            rootfs: req.rootfs.clone(),
            stdin: req.stdin.clone(),
            stdout: req.stdout.clone(),
            stderr: req.stderr.clone(),
            terminal: req.terminal,
            short_name: rundir::short_name(&self.args.namespace, &self.args.address, &req.id),
        }
    }

    fn tell_created(&self, req: api::CreateTaskRequest) {
        let io = events::TaskIO {
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            terminal: req.terminal,
            ..events::TaskIO::default()
        };
        let event = events::TaskCreate {
            container_id: req.id,
            bundle: req.bundle,
            rootfs: req.rootfs,
            io: MessageField::some(io),
            pid: std::process::id(),
            ..events::TaskCreate::default()
        };
        self.publisher.publish(topics::TASK_CREATE_EVENT_TOPIC, &event, "TaskCreate");
    }
}

fn tell_exit(publisher: &Publisher, id: &str, pid: u32, exit: &Exit) {
    let event = events::TaskExit {
        container_id: id.to_owned(),
        id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: exit.at(),
        ..events::TaskExit::default()
    };
    publisher.publish(topics::TASK_EXIT_EVENT_TOPIC, &event, "TaskExit");
}

#[async_trait]
impl TaskApi for Service {
    async fn create(
        &self,
        _ctx: &TtrpcContext,
        req: api::CreateTaskRequest,
    ) -> Reply<api::CreateTaskResponse> {
        if !req.checkpoint.is_empty() {
            return Err(refuse(Code::UNIMPLEMENTED, "VMs cannot be created from a container's checkpoint"));
        }
        let mut config = Config::load(req.bundle.as_ref()).map_err(TaskError::from)?;
        if let Role::Member { sandbox } = &config.role {
            // containerd names the namespaces of the pause container's process, and ours has none.
            let pod = self.find(sandbox, "")?;
            config.netns = pod.netns.clone();
        }
        if self.tasks().contains_key(&req.id) {
            return Err(refuse(Code::ALREADY_EXISTS, format!("there is a task {} already", req.id)));
        }
        if config.role != Role::Sandbox
            && let Some(other) = self.tasks().values().find(|task| task.is_vm())
        {
            let why = format!("this pod is the VM of container {}; a pod has one VM", other.order.id);
            return Err(refuse(Code::FAILED_PRECONDITION, why));
        }
        let task = Task::create(self.order(&req), config).await?;
        self.tasks().insert(req.id.clone(), task);
        self.tell_created(req);
        Ok(api::CreateTaskResponse { pid: std::process::id(), ..Default::default() })
    }

    async fn start(&self, _ctx: &TtrpcContext, req: api::StartRequest) -> Reply<api::StartResponse> {
        let task = self.find(&req.id, &req.exec_id)?;
        let (publisher, id) = (self.publisher.clone(), req.id.clone());
        let started = |pid| {
            let event = events::TaskStart { container_id: req.id.clone(), pid, ..Default::default() };
            self.publisher.publish(topics::TASK_START_EVENT_TOPIC, &event, "TaskStart");
        };
        let ended = move |pid, exit: Exit| tell_exit(&publisher, &id, pid, &exit);
        let pid = task.start(started, ended).await?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn state(&self, _ctx: &TtrpcContext, req: api::StateRequest) -> Reply<api::StateResponse> {
        let task = self.find(&req.id, &req.exec_id)?;
        let view = task.view().await;
        Ok(api::StateResponse {
            id: req.id,
            bundle: task.order.bundle.display().to_string(),
            pid: view.pid,
            status: view.status.into(),
            stdin: task.order.stdin.clone(),
            stdout: task.order.stdout.clone(),
            stderr: task.order.stderr.clone(),
            terminal: task.order.terminal,
            exit_status: view.exit.as_ref().map_or(0, |exit| exit.status),
            exited_at: view.exit.map_or_else(MessageField::none, |exit| exit.at()),
            ..Default::default()
        })
    }

    async fn kill(&self, _ctx: &TtrpcContext, req: api::KillRequest) -> Reply<api::Empty> {
        let task = self.find(&req.id, &req.exec_id)?;
        match task.kill(req.signal).await {
            Ok(Some((pid, exit))) => tell_exit(&self.publisher, &req.id, pid, &exit),
            Ok(None) => {}
            // The word containerd looks for when a task is gone already.
            Err(TaskError::State { .. }) => return Err(refuse(Code::NOT_FOUND, "process already finished")),
            Err(error) => return Err(error.into()),
        }
        Ok(api::Empty::default())
    }

    async fn wait(&self, _ctx: &TtrpcContext, req: api::WaitRequest) -> Reply<api::WaitResponse> {
        let exit = self.find(&req.id, &req.exec_id)?.wait().await;
        Ok(api::WaitResponse { exit_status: exit.status, exited_at: exit.at(), ..Default::default() })
    }

    async fn delete(&self, _ctx: &TtrpcContext, req: api::DeleteRequest) -> Reply<api::DeleteResponse> {
        let task = self.find(&req.id, &req.exec_id)?;
        let (pid, exit) = task.delete().await?;
        self.tasks().remove(&req.id);
        let event = events::TaskDelete {
            container_id: req.id,
            pid,
            exit_status: exit.status,
            exited_at: exit.at(),
            ..Default::default()
        };
        self.publisher.publish(topics::TASK_DELETE_EVENT_TOPIC, &event, "TaskDelete");
        Ok(api::DeleteResponse { pid, exit_status: exit.status, exited_at: exit.at(), ..Default::default() })
    }

    async fn pids(&self, _ctx: &TtrpcContext, req: api::PidsRequest) -> Reply<api::PidsResponse> {
        let pids = self.find(&req.id, "")?.pids().await;
        let process = |pid| api::ProcessInfo { pid, ..Default::default() };
        Ok(api::PidsResponse { processes: pids.into_iter().map(process).collect(), ..Default::default() })
    }

    async fn stats(&self, _ctx: &TtrpcContext, req: api::StatsRequest) -> Reply<api::StatsResponse> {
        let stats = MessageField::some(self.find(&req.id, "")?.metrics());
        Ok(api::StatsResponse { stats, ..Default::default() })
    }

    async fn pause(&self, _ctx: &TtrpcContext, req: api::PauseRequest) -> Reply<api::Empty> {
        self.find(&req.id, "")?.set_paused(true).await?;
        let event = events::TaskPaused { container_id: req.id, ..Default::default() };
        self.publisher.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event, "TaskPaused");
        Ok(api::Empty::default())
    }

    async fn resume(&self, _ctx: &TtrpcContext, req: api::ResumeRequest) -> Reply<api::Empty> {
        self.find(&req.id, "")?.set_paused(false).await?;
        let event = events::TaskResumed { container_id: req.id, ..Default::default() };
        self.publisher.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event, "TaskResumed");
        Ok(api::Empty::default())
    }

    async fn close_io(&self, _ctx: &TtrpcContext, req: api::CloseIORequest) -> Reply<api::Empty> {
        let task = self.find(&req.id, &req.exec_id)?;
        if req.stdin {
            task.close_stdin().await;
        }
        Ok(api::Empty::default())
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, req: api::ResizePtyRequest) -> Reply<api::Empty> {
        // A serial console has no size.
        self.find(&req.id, &req.exec_id).map(|_| api::Empty::default())
    }

    async fn exec(&self, _ctx: &TtrpcContext, req: api::ExecProcessRequest) -> Reply<api::Empty> {
        self.find(&req.id, "")?;
        Err(refuse(Code::UNIMPLEMENTED, NO_EXEC))
    }

    async fn update(&self, _ctx: &TtrpcContext, req: api::UpdateTaskRequest) -> Reply<api::Empty> {
        self.find(&req.id, "")?;
        Err(refuse(
            Code::UNIMPLEMENTED,
            "a running VM's size cannot be changed yet; start it anew with other limits",
        ))
    }

    async fn checkpoint(&self, _ctx: &TtrpcContext, req: api::CheckpointTaskRequest) -> Reply<api::Empty> {
        self.find(&req.id, "")?;
        Err(refuse(Code::UNIMPLEMENTED, "VMs cannot be checkpointed as containers; protect them instead"))
    }

    async fn connect(&self, _ctx: &TtrpcContext, req: api::ConnectRequest) -> Reply<api::ConnectResponse> {
        // containerd asks with the pod's id, and for a task it has not created yet.
        let found = self.tasks().get(&req.id).cloned();
        let task_pid = match found {
            Some(task) => task.view().await.pid,
            None => 0,
        };
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _ctx: &TtrpcContext, req: api::ShutdownRequest) -> Reply<api::Empty> {
        // containerd asks after every task; only the last one means it.
        if req.now || self.tasks().is_empty() {
            self.publisher.flush().await;
            self.done.notify_one();
        }
        Ok(api::Empty::default())
    }
}
