//! One task: a pod's pause container, which runs nothing, or a VM.
//!
//! ```text
//!   Created ──start──> Running <──pause/resume──> Paused
//!      │ kill             │ the VM ends, or kill     │
//!      └───────────────> Stopped <──────────────────-┘ ──delete──> gone
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_protos::api::Status;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

use crate::bundle::{BundleError, Config, Role};
use crate::cgroup::Cgroup;
use crate::console::{ConsoleError, Sink, Source};
use crate::group;
use crate::image::{Bootable, ImageError};
use crate::process::Exit;
use crate::rootfs::{self, RootfsError};
use crate::rundir::{self, Note};
use crate::vm::{Plan, Running, VmError};
use crate::{limits, metrics};

/// A request a task cannot follow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("cannot keep the task's notes: {0}")]
    Note(#[from] std::io::Error),
    #[error("the task is {is}, not {needed}")]
    State { is: &'static str, needed: &'static str },
    #[error("{0}")]
    Api(String),
}

/// Exit status of a task that failed to start; containerd's own word for it.
const NOT_STARTED: u32 = 128;

/// What a task was created with.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<containerd_shim_protos::types::mount::Mount>,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    /// Unique on this host.
    pub(crate) short_name: String,
}

/// A task. All methods may be called at any time; one waits for the other.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) order: Order,
    /// The network namespace it was created with.
    pub(crate) netns: Option<PathBuf>,
    plan: Option<Plan>,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug)]
enum State {
    /// A VM's streams are open and wait for it.
    Created(Option<Box<Streams>>),
    Running(Live),
    Paused(Live),
    Stopped {
        pid: u32,
        exit: Exit,
    },
}

/// What runs.
#[derive(Debug)]
struct Live {
    pid: u32,
    typing: Option<AbortHandle>,
}

#[derive(Debug)]
struct Streams {
    stdin: Option<Source>,
    stdout: Sink,
    stderr: Sink,
}

/// What `State` asks for.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) status: Status,
    pub(crate) pid: u32,
    pub(crate) exit: Option<Exit>,
}

impl Task {
    /// Makes a task ready to start. On an error nothing is left.
    pub(crate) async fn create(order: Order, config: Config) -> Result<Arc<Self>, TaskError> {
        let netns = config.netns.clone();
        let (plan, streams) = if config.role == Role::Sandbox {
            (None, None)
        } else {
            let (plan, streams) = prepare(&order, config)
                .await
                .inspect_err(|_| undo(&order.bundle, &order.bundle.join("rootfs")))?;
            (Some(plan), Some(streams))
        };
        let (exit, _) = watch::channel(None);
        Ok(Arc::new(Self {
            order,
            netns,
            plan,
            state: Mutex::new(State::Created(streams.map(Box::new))),
            exit,
        }))
    }

    /// Whether this task is a VM.
    pub(crate) fn is_vm(&self) -> bool {
        self.plan.is_some()
    }

    /// Starts it; `ended` is told once when it has ended. Returns its process number.
    pub(crate) async fn start(
        self: &Arc<Self>,
        started: impl FnOnce(u32),
        ended: impl FnOnce(u32, Exit) + Send + 'static,
    ) -> Result<u32, TaskError> {
        let mut state = self.state.lock().await;
        let State::Created(streams) = &mut *state else { return Err(needs(&state, "created")) };
        let (Some(plan), Some(streams)) = (&self.plan, streams.take()) else {
            let pid = std::process::id();
            *state = State::Running(Live { pid, typing: None });
            started(pid);
            return Ok(pid);
        };
        let running = match self.start_vm(plan, streams.stdout, streams.stderr).await {
            Ok(running) => running,
            Err(error) => {
                // As with runc, what failed to start has ended: only then can it be deleted.
                let exit = Exit::now(NOT_STARTED);
                *state = State::Stopped { pid: 0, exit: exit.clone() };
                self.exit.send_replace(Some(exit));
                return Err(error);
            }
        };
        let Running { child, pid, started: since, stdin, output } = running;
        let mut note = Note::load(&self.order.bundle);
        note.vmm = Some((pid, since));
        note.save(&self.order.bundle)?;
        let typing = streams.stdin.zip(stdin).map(|(from, to)| tokio::spawn(from.carry(to)).abort_handle());
        *state = State::Running(Live { pid, typing });
        started(pid);
        tokio::spawn(self.clone().follow(child, output, ended));
        Ok(pid)
    }

    /// Starts the VM. Of a group's pods that start at the same time, all but one find themselves too late, and ask again.
    async fn start_vm(&self, plan: &Plan, mut stdout: Sink, mut stderr: Sink) -> Result<Running, TaskError> {
        let mut tries = 1;
        loop {
            // Opened before the attempt: a stream that nobody holds open has ended for containerd.
            let next = if plan.config.group.is_some() { Some(outputs(&self.order).await?) } else { None };
            match (plan.start(stdout, stderr).await, next) {
                (Err(VmError::Undecided(why)), Some(next)) if tries < limits::GROUP_TRIES => {
                    tracing::info!(%why, "asking again what this pod is to be");
                    tries += 1;
                    (stdout, stderr) = next;
                }
                (result, _) => {
                    if let (Err(_), Some(group)) = (&result, &plan.config.group) {
                        group::gave_up(group).await;
                    }
                    return Ok(result?);
                }
            }
        }
    }

    /// Waits for the VM's end and says so, after its last output has been passed on.
    async fn follow(
        self: Arc<Self>,
        mut child: tokio::process::Child,
        output: tokio::task::JoinHandle<()>,
        ended: impl FnOnce(u32, Exit),
    ) {
        let status = child.wait().await;
        let _ = output.await;
        let exit = status.map_or_else(|_| Exit::now(255), Exit::of);
        let mut state = self.state.lock().await;
        let pid = pid_of(&state);
        if let State::Running(live) | State::Paused(live) = &*state
            && let Some(typing) = &live.typing
        {
            typing.abort();
        }
        *state = State::Stopped { pid, exit: exit.clone() };
        ended(pid, exit.clone());
        self.exit.send_replace(Some(exit));
    }

    /// Sends a signal. What was never started, and a pause container, end at once; then the exit is returned.
    pub(crate) async fn kill(&self, signal: u32) -> Result<Option<(u32, Exit)>, TaskError> {
        let asks_to_end = matches!(signal, 2 | 3 | 9 | 15);
        // A pod is asked to end when its node is drained: the group's VM goes on elsewhere, if it can.
        let kills = signal == 9 || asks_to_end && self.goes_on_elsewhere().await;
        let mut state = self.state.lock().await;
        match &*state {
            State::Stopped { .. } => Err(needs(&state, "running")),
            State::Running(live) | State::Paused(live) if self.is_vm() => {
                // Signals that mean anything else have no meaning for a VM.
                let vmm = i32::try_from(live.pid).ok().and_then(Pid::from_raw).filter(|_| asks_to_end);
                let signal = if kills { Signal::KILL } else { Signal::TERM };
                vmm.map_or(Ok(()), |vmm| kill_process(vmm, signal)).or(Ok::<(), TaskError>(()))?;
                Ok(None)
            }
            _ if asks_to_end => {
                let (pid, exit) = (pid_of(&state), Exit::now(128 + signal));
                *state = State::Stopped { pid, exit: exit.clone() };
                self.exit.send_replace(Some(exit.clone()));
                Ok(Some((pid, exit)))
            }
            _ => Ok(None),
        }
    }

    async fn goes_on_elsewhere(&self) -> bool {
        match &self.plan {
            Some(plan) if plan.config.group.is_some() => crate::vm::has_replica(&plan.api()).await,
            _ => false,
        }
    }

    /// Stops the guest's processors, or lets them go on.
    pub(crate) async fn set_paused(&self, paused: bool) -> Result<(), TaskError> {
        let mut state = self.state.lock().await;
        let Some(plan) = &self.plan else {
            return Err(TaskError::Api("a pause container runs nothing that could be paused".to_owned()));
        };
        let is_right = matches!((&*state, paused), (State::Running(_), true) | (State::Paused(_), false));
        if !is_right {
            return Err(needs(&state, if paused { "running" } else { "paused" }));
        }
        crate::vm::set_paused(&plan.api(), paused).await.map_err(TaskError::Api)?;
        let old = std::mem::replace(&mut *state, State::Created(None));
        *state = match old {
            State::Running(live) => State::Paused(live),
            State::Paused(live) => State::Running(live),
            other => other,
        };
        Ok(())
    }

    /// Removes what the task has made.
    pub(crate) async fn delete(&self) -> Result<(u32, Exit), TaskError> {
        let state = self.state.lock().await;
        let ended = match &*state {
            State::Stopped { pid, exit } => (*pid, exit.clone()),
            State::Created(_) => (std::process::id(), Exit::now(0)),
            _ => return Err(needs(&state, "stopped")),
        };
        if self.is_vm() {
            undo(&self.order.bundle, &self.order.bundle.join("rootfs"));
        }
        Ok(ended)
    }

    /// Ends the input.
    pub(crate) async fn close_stdin(&self) {
        if let State::Running(live) | State::Paused(live) = &*self.state.lock().await
            && let Some(typing) = &live.typing
        {
            typing.abort();
        }
    }

    /// Waits for the end.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let seen = exit.wait_for(Option::is_some).await;
        seen.ok().and_then(|exit| exit.clone()).unwrap_or_else(|| Exit::now(255))
    }

    /// How it is.
    pub(crate) async fn view(&self) -> View {
        let state = self.state.lock().await;
        let (status, exit) = match &*state {
            State::Created(_) => (Status::CREATED, None),
            State::Running(_) => (Status::RUNNING, None),
            State::Paused(_) => (Status::PAUSED, None),
            State::Stopped { exit, .. } => (Status::STOPPED, Some(exit.clone())),
        };
        View { status, pid: pid_of(&state), exit }
    }

    /// What it uses.
    pub(crate) fn metrics(&self) -> Any {
        let cgroup = self.plan.as_ref().and_then(|plan| plan.cgroup.clone());
        metrics::read(&cgroup.unwrap_or_else(|| Cgroup::at("/endophyte/none")))
    }

    /// Its processes.
    pub(crate) async fn pids(&self) -> Vec<u32> {
        match &*self.state.lock().await {
            State::Running(live) | State::Paused(live) => vec![live.pid],
            _ => Vec::new(),
        }
    }
}

fn pid_of(state: &State) -> u32 {
    match state {
        State::Running(live) | State::Paused(live) => live.pid,
        State::Stopped { pid, .. } => *pid,
        State::Created(_) => std::process::id(),
    }
}

fn needs(state: &State, needed: &'static str) -> TaskError {
    let is = match state {
        State::Created(_) => "created",
        State::Running(_) => "running",
        State::Paused(_) => "paused",
        State::Stopped { .. } => "stopped",
    };
    TaskError::State { is, needed }
}

/// Mounts the image and finds out what there is to boot.
async fn prepare(order: &Order, config: Config) -> Result<(Plan, Streams), TaskError> {
    let folder = rundir::folder(&order.short_name);
    let note = Note { folder: Some(folder.clone()), cgroups_path: config.cgroups_path.clone(), vmm: None };
    note.save(&order.bundle)?;
    rundir::make(&folder)?;
    let root = order.bundle.join(&config.root);
    if !order.rootfs.is_empty() {
        rootfs::attach(&order.rootfs, &root)?;
    }
    let bootable = Bootable::find(&root)?;
    let stdin = Source::open(&order.stdin)?;
    let (stdout, stderr) = outputs(order).await?;
    let streams = Streams { stdin, stdout, stderr };
    let cgroup = config.cgroups_path.as_deref().map(Cgroup::at);
    let plan = Plan { id: order.id.clone(), bundle: order.bundle.clone(), folder, config, bootable, cgroup };
    Ok((plan, streams))
}

async fn outputs(order: &Order) -> Result<(Sink, Sink), ConsoleError> {
    Ok((Sink::open("stdout", &order.stdout).await?, Sink::open("stderr", &order.stderr).await?))
}

/// Undoes what a task has made outside its own process, as the note in its bundle tells. Also for `delete`, after a shim was
/// killed.
pub(crate) fn undo(bundle: &std::path::Path, rootfs: &std::path::Path) {
    let note = Note::load(bundle);
    if let Some((pid, started)) = note.vmm {
        crate::process::end(pid, started, limits::KILLED);
    }
    rootfs::detach(rootfs);
    if let Some(path) = &note.cgroups_path {
        let cgroup = Cgroup::at(path);
        // Killed before it was noted: whoever is in the container's cgroup belongs to it.
        for pid in cgroup.processes() {
            if let Some(started) = crate::process::start_time(pid) {
                crate::process::end(pid, started, limits::KILLED);
            }
        }
        cgroup.remove();
    }
    if let Some(folder) = &note.folder {
        let _ = std::fs::remove_dir_all(folder);
    }
}
