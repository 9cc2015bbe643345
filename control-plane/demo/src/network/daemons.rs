//! The nodes' daemons: started, asked on their sockets, formed into a network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use mycelium_api::{
    InitRequest, InviteRequest, JoinRequest, Member, NetworkStatus, NodeClient, StatusRequest,
};
use mycelium_ram::clock;
use tokio::runtime::Runtime;
use tonic::{Response, Status};

use crate::node::{self, Node, UDP_PAYLOAD};
use crate::programs::Programs;
use crate::story::Story;

const PORT: u16 = 7600;
/// One answer, and three daemons that hear each other, take this long at most.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between looks at what is being waited for.
const LOOK: Duration = Duration::from_millis(20);
const INVITATION_S: u64 = 600;
/// Three nodes, clients and captures share this machine's processors: a beat may be late without a loss.
const DETECT_MS: &str = "100";

/// A running daemon. It ends with its node.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    dir: PathBuf,
    outside: Child,
}

impl Daemon {
    /// Starts it inside its node; it may not answer yet.
    pub(crate) fn start(
        node: &Node,
        n: usize,
        name: &'static str,
        programs: &Programs,
        dir: &Path,
    ) -> Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let log = File::create(dir.join("daemon.log"))?;
        let mut daemon = node.enter(&programs.mycelium);
        daemon.args(["node", "run", "--name", name, "--mtu", UDP_PAYLOAD, "--detect-ms", DETECT_MS]);
        daemon.args(["--listen", &format!("{}:{PORT}", node::mgmt_address(n))]);
        for path in node::path_addresses(n) {
            daemon.args(["--path", &path]);
        }
        daemon.arg("--dir").arg(dir.join("state")).arg("--socket").arg(dir.join("node.sock"));
        daemon.arg("--endophyte").arg(&programs.endophyte);
        daemon.stdout(log.try_clone()?).stderr(log);
        let outside = daemon.spawn().context("cannot start a daemon")?;
        Ok(Self { name, dir, outside })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("node.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Where it keeps a VM.
    pub(crate) fn vm_folder(&self, vm: &str) -> PathBuf {
        self.dir.join("state/vms").join(vm)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

/// Asks daemons, one question after the other, until the demo is interrupted.
#[derive(Debug)]
pub(crate) struct Asking {
    runtime: Runtime,
    interrupted: Arc<AtomicBool>,
}

impl Asking {
    pub(crate) fn new(interrupted: &Arc<AtomicBool>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, interrupted: interrupted.clone() })
    }

    /// Asks one daemon; `what` completes "cannot get node X ...".
    pub(crate) fn of<T>(
        &self,
        daemon: &Daemon,
        what: &str,
        question: impl AsyncFnOnce(NodeClient) -> Result<Response<T>, Status>,
    ) -> Result<T> {
        let answer = async {
            let client =
                mycelium_api::connect(daemon.socket()).await.context("its daemon does not answer")?;
            let answer = question(client).await;
            answer.map(Response::into_inner).map_err(|status| anyhow!("{}", status.message().to_owned()))
        };
        let asked = self.runtime.block_on(async {
            tokio::select! {
                answer = tokio::time::timeout(PATIENCE, answer) => {
                    answer.unwrap_or_else(|_| Err(anyhow!("no answer in {} s", PATIENCE.as_secs())))
                }
                () = self.interruption() => Err(anyhow!("interrupted")),
            }
        });
        asked.with_context(|| format!("cannot get node {} {what}", daemon.name))
    }

    async fn interruption(&self) {
        while !self.interrupted.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn status(&self, daemon: &Daemon) -> Result<NetworkStatus> {
        self.of(daemon, "to show its network", async |mut d| d.status(StatusRequest {}).await)
    }

    /// Asks for a daemon's status until it is as wanted.
    fn until(
        &self,
        daemon: &Daemon,
        what: &str,
        done: impl Fn(&NetworkStatus) -> bool,
    ) -> Result<NetworkStatus> {
        let deadline = clock::now() + PATIENCE;
        loop {
            let status = self.status(daemon);
            match &status {
                Ok(seen) if done(seen) => return status,
                _ if self.interrupted.load(Ordering::Relaxed) => bail!("interrupted"),
                _ if clock::now() > deadline => {
                    let seen = status.map_or_else(|error| format!("{error:#}"), |s| s.survives);
                    bail!("waited {} s for node {} {what}: {seen}", PATIENCE.as_secs(), daemon.name);
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }
}

/// Has the first daemon found a network and the others join it, each by an invitation of its own; returns the nodes' keys
/// when all hear all, all vote, and every one has said what room it has.
pub(crate) fn form(asking: &Asking, daemons: &[&Daemon], story: &Story) -> Result<Vec<String>> {
    let (first, others) = daemons.split_first().context("no nodes")?;
    let mut keys = Vec::new();
    story.now("waiting for the daemons".to_owned());
    for daemon in daemons {
        keys.push(asking.until(daemon, "to answer", |_| true)?.node);
    }
    let tell = |text: String| story.mark(clock::now().0, &text);
    tell(format!("{} daemons answer, each alone in a namespace of its own", daemons.len()));
    asking.of(first, "to found a network", async |mut d| d.init(InitRequest {}).await)?;
    tell(format!("node {} founds a network", first.name));
    for daemon in others {
        let ask = InviteRequest { valid_for_s: INVITATION_S };
        let invitation = asking.of(first, "to invite", async |mut d| d.invite(ask).await)?.text;
        asking.of(daemon, "to join", async |mut d| d.join(JoinRequest { invitation }).await)?;
        tell(format!("node {} joins it by an invitation of node {}", daemon.name, first.name));
    }
    // A member's first report is an empty one.
    let has_room = |member: &Member| member.capacity.is_some_and(|capacity| capacity.kvm);
    let is_well = |member: &Member| member.alive == "yes" && member.votes && has_room(member);
    for daemon in daemons {
        asking.until(daemon, "to hear all nodes and to see all of them vote", |status| {
            status.members.len() == daemons.len() && status.members.iter().all(is_well)
        })?;
    }
    tell("all nodes hear each other, and all of them vote: any one may be lost".to_owned());
    Ok(keys)
}
