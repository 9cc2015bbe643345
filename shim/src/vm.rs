//! Starting `endophyte` for a container: its spec, its tap, its cgroup, its streams.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use endophyte_api::{InfoRequest, PauseRequest, ResumeRequest, Role, VmInfo};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::bundle::Config;
use crate::cgroup::{self, Cgroup};
use crate::console::Sink;
use crate::group::{self, GroupError};
use crate::image::{Bootable, ImageError};
use crate::net::{self, NetError, Taken};
use crate::{limits, masquerade, process};

const VMM: &str = "endophyte";
/// The VMM's exit code when the arbiter did not let it be the active.
const NO_ARBITER: i32 = 7;

/// A VM could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot write {path}: {source}")]
    Spec { path: PathBuf, source: io::Error },
    #[error("cannot make the container's cgroup: {0}")]
    Cgroup(io::Error),
    #[error("cannot start {VMM}: {0}; it belongs beside this shim or into the PATH of containerd")]
    Spawn(io::Error),
    #[error("the VM did not start: {0}")]
    Failed(String),
    /// Of a group's pod: another one may have been faster.
    #[error("the VM did not start: {0}")]
    Undecided(String),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("the VM has not started within {} s", limits::VM_START.as_secs())]
    Slow,
}

/// Everything a VM is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// For the VMM's socket.
    pub(crate) folder: PathBuf,
    pub(crate) config: Config,
    pub(crate) bootable: Bootable,
    pub(crate) cgroup: Option<Cgroup>,
}

/// A VM that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) pid: u32,
    pub(crate) started: u64,
    pub(crate) stdin: Option<ChildStdin>,
    /// Carries the console; ends with it.
    pub(crate) output: JoinHandle<()>,
}

impl Plan {
    /// Where the VMM answers.
    pub(crate) fn api(&self) -> PathBuf {
        self.folder.join("vm.sock")
    }

    /// Starts the VM; on return the guest runs.
    pub(crate) async fn start(&self, stdout: Sink, stderr: Sink) -> Result<Running, VmError> {
        let (taken, args) = self.connect().await?;
        let spec = self.bundle.join("vm.toml");
        let text = self.spec(taken.as_ref())?;
        std::fs::write(&spec, text).map_err(|source| VmError::Spec { path: spec.clone(), source })?;
        if let Some(cgroup) = &self.cgroup {
            cgroup.create().map_err(VmError::Cgroup)?;
        }
        let mut child = self.spawn(&args, &spec, taken.map(|t| t.tap))?;
        let words = LastWords::default();
        let console = child.stdout.take().map(|out| stdout.carry(out));
        let complaints = child.stderr.take().map(|err| words.clone().hear(err, stderr));
        let output = tokio::spawn(async move {
            let both = (console, complaints);
            let console = async {
                if let Some(carried) = both.0 {
                    carried.await;
                }
            };
            let complaints = async {
                if let Some(heard) = both.1 {
                    heard.await;
                }
            };
            tokio::join!(console, complaints);
        });
        self.await_start(&mut child, &words).await?;
        let pid = child.id().ok_or_else(|| VmError::Failed(words.last()))?;
        let started = process::start_time(pid).unwrap_or(0);
        if let Some(group) = &self.config.group
            && let Err(error) = group::started(group, pid).await
        {
            // Nobody would keep it a replica.
            let _ = child.kill().await;
            return Err(error.into());
        }
        Ok(Running { pid, started, stdin: child.stdin.take(), child, output })
    }

    /// The VM's place on the network, and the VMM's arguments.
    async fn connect(&self) -> Result<(Option<Taken>, Vec<String>), VmError> {
        let Some(group) = &self.config.group else {
            let taken = match &self.config.netns {
                Some(netns) => Some(net::take(netns).await?),
                None => None,
            };
            return Ok((taken, vec!["run".to_owned()]));
        };
        let taken = match &self.config.netns {
            Some(netns) => Some(masquerade::share(netns).await?),
            None => None,
        };
        Ok((taken, group::join(group, self.config.ram_mib << 20, &self.api()).await?))
    }

    /// The VM's spec file.
    fn spec(&self, taken: Option<&Taken>) -> Result<String, ImageError> {
        // What a group's guests are told must be the same in all of its pods.
        let group = self.config.group.as_ref();
        let hostname = group.map_or(&self.config.hostname, |group| &group.name);
        let cmdline = self.bootable.cmdline(hostname, taken.map(|t| &t.interface))?;
        let name = group.map_or_else(|| self.id.chars().take(32).collect(), |group| group.vm.clone());
        let mut text = format!(
            "name = {name:?}\nvcpus = {}\nram_mib = {}\nkernel = {:?}\ncmdline = {cmdline:?}\nserial = \"stdio\"\n",
            self.config.vcpus, self.config.ram_mib, self.bootable.kernel,
        );
        if let Some(initrd) = &self.bootable.initrd {
            let _ = writeln!(text, "initrd = {initrd:?}");
        }
        if let Some(Taken { tap, interface }) = taken {
            let _ =
                write!(text, "\n[[net]]\ntap = \"fd:{}\"\nmac = \"{}\"\n", tap.as_raw_fd(), interface.mac);
        }
        Ok(text)
    }

    fn spawn(&self, args: &[String], spec: &Path, tap: Option<OwnedFd>) -> Result<Child, VmError> {
        let doors = self.cgroup.as_ref().map(Cgroup::doors).transpose().map_err(VmError::Cgroup)?;
        let mut vmm = Command::new(program());
        vmm.args(args).arg("--die-with-parent").arg("--spec").arg(spec).arg("--api").arg(self.api());
        vmm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // SAFETY: between fork and exec the closure makes only system calls (write, fcntl) on descriptors it owns, and
        // allocates nothing.
        unsafe {
            vmm.pre_exec(move || {
                doors.as_deref().map_or(Ok(()), cgroup::enter)?;
                let inherit = |tap| rustix::io::fcntl_setfd(tap, rustix::io::FdFlags::empty());
                Ok(tap.as_ref().map_or(Ok(()), inherit)?)
            });
        }
        vmm.spawn().map_err(VmError::Spawn)
    }

    /// Returns when the guest runs.
    async fn await_start(&self, child: &mut Child, words: &LastWords) -> Result<(), VmError> {
        let api = self.api();
        tokio::select! {
            ended = child.wait() => {
                let code = ended.as_ref().ok().and_then(ExitStatus::code);
                let how = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
                let why = format!("{} ({how})", words.last());
                let undecided = self.config.group.is_some() && code == Some(NO_ARBITER);
                Err(if undecided { VmError::Undecided(why) } else { VmError::Failed(why) })
            }
            answered = timeout(limits::VM_START, running(&api)) => answered.map_err(|_| VmError::Slow),
        }
    }
}

/// The VMM: beside this program, else wherever the PATH has it.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|me| me.with_file_name(VMM)).filter(|path| path.is_file());
    beside.unwrap_or_else(|| VMM.into())
}

/// The end of what the VMM says about itself; the reason, when it fails.
#[derive(Clone, Debug, Default)]
struct LastWords(Arc<Mutex<Vec<u8>>>);

impl LastWords {
    /// Takes note, and passes on.
    async fn hear(self, mut from: impl tokio::io::AsyncRead + Unpin, to: Sink) {
        let (mut copy, passed) = tokio::io::duplex(4096);
        let pass = to.carry(passed);
        let hear = async move {
            let mut chunk = [0; 1024];
            while let Ok(n @ 1..) = from.read(&mut chunk).await {
                self.note(&chunk[..n]);
                let _ = tokio::io::AsyncWriteExt::write_all(&mut copy, &chunk[..n]).await;
            }
        };
        tokio::join!(pass, hear);
    }

    fn note(&self, bytes: &[u8]) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend(bytes);
        let excess = words.len().saturating_sub(limits::LAST_WORDS_BYTES);
        words.drain(..excess);
    }

    fn last(&self) -> String {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&words).trim().to_owned();
        if text.is_empty() { "it said nothing".to_owned() } else { text }
    }
}

/// Returns when the VMM says that its guest runs, or that it waits to be another's replica.
async fn running(api: &Path) {
    loop {
        if let Ok(mut vmm) = endophyte_api::connect(api).await
            && let Ok(info) = vmm.info(InfoRequest {}).await
            && is_up(&info.into_inner())
        {
            return;
        }
        sleep(limits::VM_LOOK).await;
    }
}

fn is_up(info: &VmInfo) -> bool {
    match info.role() {
        // Before that, the arbiter may still say that another one is the active.
        Role::Run | Role::Active => info.state != "starting",
        Role::Passive => !info.ticket.is_empty(),
        Role::Unspecified => false,
    }
}

/// Whether a replica holds all that the guest has said, so that the VM goes on when this process ends.
pub(crate) async fn has_replica(api: &Path) -> bool {
    let ask = async {
        let mut vmm = endophyte_api::connect(api).await.ok()?;
        Some(vmm.info(InfoRequest {}).await.ok()?.into_inner())
    };
    // One that does not answer will not end cleanly either; kubelet's next word is SIGKILL.
    let info = timeout(limits::VM_ANSWER, ask).await.ok().flatten().unwrap_or_default();
    info.role() == Role::Active && info.replicas.iter().any(|replica| replica.state == "in sync")
}

/// Stops or continues the guest of a VMM. The error is for people.
pub(crate) async fn set_paused(api: &Path, paused: bool) -> Result<(), String> {
    let mut vmm = endophyte_api::connect(api).await.map_err(|e| format!("the VM does not answer: {e}"))?;
    let done = if paused {
        vmm.pause(PauseRequest {}).await.map(drop)
    } else {
        vmm.resume(ResumeRequest {}).await.map(drop)
    };
    done.map_err(|status| status.message().to_owned())
}
