//! A network of nodes on one machine: each in a network namespace of its own, with two cables.
//!
//! ```text
//!   this namespace: clients        node a                       b, c: the same
//!     br-client 10.77.0.1 ─ ca ── guest0 ─ br0 ─ tap0
//!     br-nodes            ─ na ── nodes0 10.77.1.11   daemon, replication
//! ```

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine::{self, run};
use crate::needs;
use crate::world::eventually;

/// Where the guest serves.
pub const GUEST: &str = "10.77.0.100";
const GUEST_MAC: &str = "02:6d:79:63:65:01";

/// The network's nodes.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<Node>,
    dir: tempfile::TempDir,
    programs: PathBuf,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its name: a, b, c.
    pub name: String,
    number: usize,
    dir: PathBuf,
    programs: PathBuf,
    daemon: Option<Child>,
}

impl Network {
    /// Lays cables and starts daemons that are in no network yet; `None` when this machine lacks something.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn lay(count: usize) -> Result<Option<Self>> {
        let Some(programs) = needs::programs() else { return Ok(None) };
        machine::enter()?;
        std::fs::create_dir_all("/run/netns")?;
        let dir = tempfile::Builder::new().prefix("network-").tempdir()?;
        ip("link add br-client address 02:6d:79:62:72:00 type bridge mcast_snooping 0")?;
        ip("addr add 10.77.0.1/24 dev br-client")?;
        ip("link add br-nodes type bridge mcast_snooping 0")?;
        ip("link set br-client up")?;
        ip("link set br-nodes up")?;
        let mut nodes = Vec::new();
        for number in 0..count {
            nodes.push(Node::lay(number, dir.path(), &programs)?);
        }
        for node in &mut nodes {
            node.start_daemon().await?;
        }
        Ok(Some(Self { nodes, dir, programs }))
    }

    /// Makes the first node found the network and lets the others join it.
    ///
    /// # Errors
    /// The command line's.
    pub async fn form(&self) -> Result<()> {
        self.nodes[0].ask(&["network", "init"])?;
        for node in &self.nodes[1..] {
            let invitation = self.invitation()?;
            node.ask(&["network", "join", &invitation])?;
        }
        let all = self.nodes.len();
        eventually("every node to hear all the others", || {
            self.nodes.iter().all(|node| node.status().is_ok_and(|s| alive(&s) == all))
        })
        .await
    }

    /// An invitation of the first node.
    ///
    /// # Errors
    /// The command line's.
    pub fn invitation(&self) -> Result<String> {
        let made = self.nodes[0].ask(&["network", "invite"])?;
        made["text"].as_str().map(str::to_owned).context("no invitation")
    }

    /// Gives this namespace an address among the daemons.
    ///
    /// # Errors
    /// When it has one already.
    pub fn reach(&self) -> Result<()> {
        ip("addr add 10.77.1.1/24 dev br-nodes")
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).expect("the test names its own nodes")
    }

    /// A node, to be changed.
    #[must_use]
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == name).expect("the test names its own nodes")
    }

    /// Folder for the network's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Folder of the programs under test.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// All of them.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Writes the spec of a VM of the native guest.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn spec(&self, ram_mib: u64) -> Result<PathBuf> {
        let path = self.dir.path().join("vm.toml");
        let kernel = self.programs.join("native-guest");
        let text = format!(
            "name = \"store\"\nram_mib = {ram_mib}\nkernel = {kernel:?}\ncmdline = \"ip={GUEST}/24 gw=10.77.0.1\"\n\
             serial = \"null\"\n\n[[net]]\ntap = \"tap0\"\nmac = \"{GUEST_MAC}\"\n"
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Waits until a VM is protected by a replica on another node; returns the names of both nodes.
    ///
    /// # Errors
    /// When it does not happen; with what the nodes say.
    pub async fn protected(&self, from: &str) -> Result<(String, String)> {
        let mut found = None;
        let done = eventually("the VM to be protected", || {
            found = self.node(from).pair().ok().flatten();
            found.is_some()
        });
        done.await
            .with_context(|| format!("{:#}", self.node(from).ask(&["vm", "list"]).unwrap_or_default()))?;
        found.context("protected, and by nobody")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if std::thread::panicking() || std::env::var_os("SLICE_LOG").is_some() {
                let log = std::fs::read_to_string(node.dir.join("daemon.log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("node {}:\n{}", node.name, lines[lines.len().saturating_sub(10)..].join("\n"));
            }
            node.lose();
        }
    }
}

impl Node {
    fn lay(number: usize, dir: &Path, programs: &Path) -> Result<Self> {
        let name = char::from(b'a' + u8::try_from(number)?).to_string();
        ip(&format!("netns add {name}"))?;
        for (cable, inside, bridge) in [("client", "guest0", "br-client"), ("nodes", "nodes0", "br-nodes")] {
            ip(&format!("link add dev {cable}-{name} type veth peer name {inside} netns {name}"))?;
            ip(&format!("link set dev {cable}-{name} master {bridge} up"))?;
            ip(&format!("-n {name} link set {inside} up"))?;
        }
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add {}/24 dev nodes0", address(number)))?;
        ip(&format!("-n {name} link add br0 type bridge mcast_snooping 0"))?;
        ip(&format!("-n {name} link set br0 up"))?;
        ip(&format!("-n {name} link set guest0 master br0"))?;
        ip(&format!("-n {name} tuntap add tap0 mode tap"))?;
        ip(&format!("-n {name} link set tap0 master br0 up"))?;
        let dir = dir.join(&name);
        std::fs::create_dir_all(&dir)?;
        Ok(Self { name, number, dir, programs: programs.to_owned(), daemon: None })
    }

    /// Starts its daemon.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn start_daemon(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("daemon.log"))?;
        let mut daemon = Command::new("ip");
        daemon.args(["netns", "exec", &self.name]).arg(self.programs.join("mycelium"));
        daemon.args([
            "node",
            "run",
            "--name",
            &self.name,
            "--listen",
            &format!("{}:7600", address(self.number)),
            // Three nodes share this machine's processors: a beat may be late without a loss.
            "--detect-ms",
            "100",
        ]);
        daemon.arg("--dir").arg(self.dir.join("state")).arg("--socket").arg(self.socket());
        daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.daemon = Some(daemon.spawn().context("cannot start a daemon")?);
        eventually("the daemon to answer", || self.status().is_ok()).await
    }

    /// Sends its daemon a signal.
    ///
    /// # Errors
    /// When there is none.
    pub fn signal_daemon(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = self.daemon_pid().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(rustix::process::Pid::from_raw).context("no daemon runs")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Process of its daemon: `ip netns exec` has become it.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Its private key's file.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("state/node.key")
    }

    /// Where its daemon listens.
    #[must_use]
    pub fn listen(&self) -> String {
        format!("{}:7600", address(self.number))
    }

    /// Kills its daemon alone. VMs go on.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Loses the node: cables first, so that nobody hears it die; then all of its processes.
    pub fn lose(&mut self) {
        for cable in ["client", "nodes"] {
            let _ = ip(&format!("link set dev {cable}-{} down", self.name));
        }
        let pids = run("ip", &["netns", "pids", &self.name]).unwrap_or_default();
        for pid in pids.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        self.kill_daemon();
    }

    /// Lays the cables of a lost node again and starts its daemon.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn come_back(&mut self) -> Result<()> {
        for cable in ["client", "nodes"] {
            ip(&format!("link set dev {cable}-{} up", self.name))?;
        }
        self.start_daemon().await
    }

    /// Folder of its daemon.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Asks its daemon by the command line.
    ///
    /// # Errors
    /// The command line's own words.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let socket = self.socket().display().to_string();
        let mycelium = self.programs.join("mycelium").display().to_string();
        let said = run(&mycelium, &[words, &["--json", "--socket", &socket]].concat())?;
        serde_json::from_str(said.trim()).with_context(|| format!("{words:?} answered {said:?}"))
    }

    /// `mycelium network status`.
    ///
    /// # Errors
    /// The command line's.
    pub fn status(&self) -> Result<Value> {
        self.ask(&["network", "status"])
    }

    /// Nodes of the active and of the replica in sync, if the VM is protected.
    ///
    /// # Errors
    /// The command line's.
    pub fn pair(&self) -> Result<Option<(String, String)>> {
        let vms = self.ask(&["vm", "list"])?;
        let all = vms.as_array().context("no list")?;
        let node = |role: &str, key: &str, value: Value| {
            let found = all.iter().find(|vm| vm["role"] == role && vm[key] == value)?;
            found["node_name"].as_str().map(str::to_owned)
        };
        let active = node("active", "protected", Value::Bool(true));
        Ok(active.zip(node("passive", "state", "in sync".into())))
    }

    /// The process that runs a VM here.
    ///
    /// # Errors
    /// The command line's, and when there is none.
    pub fn vmm(&self, vm: &str) -> Result<rustix::process::Pid> {
        let vms = self.ask(&["vm", "inspect", vm])?;
        let here = vms.as_array().into_iter().flatten().find(|v| v["node_name"] == self.name.as_str());
        let pid = here.and_then(|v| i32::try_from(v["pid"].as_i64()?).ok());
        pid.and_then(rustix::process::Pid::from_raw).context("no process of the VM here")
    }

    /// The generations as which processes of this node have resumed a VM after a takeover, as its timeline tells.
    ///
    /// # Errors
    /// When a line of the timeline is no event.
    pub fn resumed(&self, vm: &str) -> Result<Vec<u64>> {
        let timeline = self.dir.join("state/vms").join(vm).join("run/events.jsonl");
        let text = std::fs::read_to_string(timeline).unwrap_or_default();
        let events: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(events
            .iter()
            .filter(|e| e["event"] == "resumed")
            .filter_map(|e| e["generation"].as_u64())
            .collect())
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Its daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        Path::new("/run").join(format!("node-{}", self.name)).join("node.sock")
    }
}

/// Address of a node among the daemons.
pub(crate) fn address(number: usize) -> String {
    format!("10.77.1.{}", 11 + number)
}

/// How many members a status says are alive.
#[must_use]
pub fn alive(status: &Value) -> usize {
    members(status).filter(|m| m["alive"] == "yes").count()
}

/// Names of the members that vote.
#[must_use]
pub fn voters(status: &Value) -> Vec<String> {
    let voting = members(status).filter(|m| m["votes"] == true);
    voting.filter_map(|m| m["name"].as_str().map(str::to_owned)).collect()
}

/// Name of the member that leads the arbiter.
#[must_use]
pub fn leader(status: &Value) -> Option<String> {
    members(status).find(|m| m["leads"] == true)?["name"].as_str().map(str::to_owned)
}

fn members(status: &Value) -> impl Iterator<Item = &Value> {
    status["members"].as_array().into_iter().flatten()
}

pub(crate) fn ip(line: &str) -> Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    if words.is_empty() {
        bail!("no words for ip");
    }
    run("ip", &words).map(drop)
}
