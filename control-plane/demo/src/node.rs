//! A node on this machine: processes, mounts and network of its own, and its cables to the other nodes.
//!
//! ```text
//!   this namespace: clients                node 0                  the others
//!     br-client 10.77.0.1 ── c0/c1 ────── guest0 ─ br0 ─ tap0      the same
//!     br-mgmt   10.77.1.1 ── m0/m1 ────── mgmt0 10.77.1.10+n
//!     br-path0            ── p0n0/p0n1 ── path0 10.77.16.10+n
//!     br-path1            ── p1n0/p1n1 ── path1 10.77.17.10+n
//! ```
//! The nodes share the paths, the arbiter's network and the clients' L2, and nothing else. Everything hangs on processes
//! that die with this one; there are no names to clean up.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mycelium_ram::clock;
use rustix::process::{Pid, Signal, kill_process};

use crate::capture::{Capture, Seen};
use crate::programs::Programs;
use crate::shell::{ip, ip_batch, run};
use crate::world::sent_by;

const MAC: &str = "02:6d:79:63:65:01";
const GUEST: &str = "10.77.0.100";
const PATHS: usize = 2;
const PATH_MTU: &str = "9000";
/// UDP payload of a 9000-byte packet.
pub(crate) const UDP_PAYLOAD: &str = "8952";
const RAM_MIB: u32 = 256;
/// First letters of the paths' cables, and of all of a node's.
pub(crate) const PATH_CABLES: &[&str] = &["p0n", "p1n"];
pub(crate) const ARBITER_CABLE: &[&str] = &["m"];
pub(crate) const ALL_CABLES: &[&str] = &["c", "m", "p0n", "p1n"];

/// The node.
#[derive(Debug)]
pub(crate) struct Node {
    n: usize,
    /// Holds the node's namespaces; its end is the node's end.
    init: Child,
    /// PID 1 of the node, as seen from here.
    init_pid: u32,
    capture: Option<Capture>,
    wire_bytes: u64,
}

/// Lays the bridges the nodes' cables lead to, in the calling thread's namespace.
pub(crate) fn lay_bridges() -> Result<()> {
    // Without a MAC of its own a bridge takes the lowest of its ports': the client would change its when a node is lost.
    for (n, (bridge, address)) in [
        ("br-client", Some("10.77.0.1/24")),
        ("br-mgmt", Some("10.77.1.1/24")),
        ("br-path0", None),
        ("br-path1", None),
    ]
    .into_iter()
    .enumerate()
    {
        ip(&format!("link add {bridge} address 02:6d:79:62:72:0{n} type bridge mcast_snooping 0"))?;
        if let Some(address) = address {
            ip(&format!("addr add {address} dev {bridge}"))?;
        }
        ip(&format!("link set {bridge} up"))?;
    }
    Ok(())
}

/// The spec of the native guest's VM.
pub(crate) fn spec(programs: &Programs) -> String {
    format!(
        "name = \"demo\"\nvcpus = 1\nram_mib = {RAM_MIB}\nkernel = {:?}\ncmdline = \"ip={GUEST}/24 gw=10.77.0.1\"\n\
         serial = \"null\"\n\n[[net]]\ntap = \"tap0\"\nmac = \"{MAC}\"\n",
        programs.native_guest
    )
}

/// Where that guest serves.
pub(crate) fn server() -> SocketAddr {
    SocketAddr::from(([10, 77, 0, 100], 6379))
}

/// A node's address in the arbiter's network.
pub(crate) fn mgmt_address(n: usize) -> String {
    format!("10.77.1.{}", 10 + n)
}

/// A node's addresses for replication.
pub(crate) fn path_addresses(n: usize) -> Vec<String> {
    (0..PATHS).map(|path| format!("10.77.{}.{}", 16 + path, 10 + n)).collect()
}

/// This machine's KVM.
pub(crate) fn kvm() -> String {
    let loaded = |module: &&str| Path::new("/sys/module").join(module).exists();
    let kind = ["kvm_pvm", "kvm_amd", "kvm_intel"].into_iter().find(loaded);
    format!("{} on this machine", kind.unwrap_or("kvm"))
}

impl Node {
    /// Makes its namespaces, lays its cables to the bridges of the calling thread's, and captures into `dir`.
    pub(crate) fn start(n: usize, dir: &Path) -> Result<Self> {
        let mut init = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--pid",
                "--mount",
                "--fork",
                "--kill-child=KILL",
            ])
            .args(["--mount-proc", "sleep", "infinity"])
            .stdin(Stdio::null())
            // It complains when its child is killed, which is the point here.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot make a node's namespaces")?;
        let init_pid = child_of(&mut init)?;
        let mut node = Self { n, init, init_pid, capture: None, wire_bytes: 0 };
        node.wire_up()?;
        node.capture = Some(Capture::start(&format!("c{n}"), MAC, &dir.join(format!("{n}.pcap")))?);
        Ok(node)
    }

    fn wire_up(&self) -> Result<()> {
        let n = self.n;
        let net = |address: &String| Some(format!("{address}/24"));
        let mut cables = vec![
            (format!("c{n}"), "br-client".to_owned(), "guest0".to_owned(), None, "1500"),
            (format!("m{n}"), "br-mgmt".to_owned(), "mgmt0".to_owned(), net(&mgmt_address(n)), "1500"),
        ];
        for (path, address) in path_addresses(n).iter().enumerate() {
            let (outside, bridge) = (format!("p{path}n{n}"), format!("br-path{path}"));
            cables.push((outside, bridge, format!("path{path}"), net(address), PATH_MTU));
        }
        for (outside, bridge, inside, address, mtu) in cables {
            let pid = self.init_pid;
            ip(&format!("link add {outside} mtu {mtu} type veth peer name {inside} mtu {mtu} netns {pid}"))?;
            ip(&format!("link set {outside} master {bridge} up"))?;
            if let Some(address) = address {
                self.inside(&format!("addr add {address} dev {inside}"))?;
            }
            self.inside(&format!("link set {inside} up"))?;
        }
        self.inside("link set lo up")?;
        self.inside("link add br0 type bridge mcast_snooping 0")?;
        self.inside("tuntap add tap0 mode tap")?;
        for port in ["tap0", "guest0"] {
            self.inside(&format!("link set {port} master br0 up"))?;
        }
        self.inside("link set br0 up").map(drop)
    }

    /// Runs `ip` inside the node.
    fn inside(&self, line: &str) -> Result<String> {
        let pid = self.init_pid.to_string();
        let mut words = vec!["nsenter", "--target", &pid, "--net", "ip"];
        words.extend(line.split_whitespace());
        run(&words)
    }

    /// The beginning of a command that runs a program inside the node and ends with this process.
    pub(crate) fn enter(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter", "--target", &self.init_pid.to_string()])
            .args(["--net", "--pid", "--mount", "--"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Processes inside the node's process namespace, as seen from here.
    fn processes(&self) -> Vec<Pid> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let mine = namespace(&self.init_pid.to_string());
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        let pids = names.filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
        let inside = pids.filter(|pid| mine.is_some() && namespace(pid) == mine);
        inside.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    /// Signals all its processes.
    pub(crate) fn signal_all(&self, signal: Signal) {
        for pid in self.processes() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills what runs in it; the node itself is still there.
    pub(crate) fn kill_programs(&self) {
        let init = i32::try_from(self.init_pid).ok().and_then(Pid::from_raw);
        for pid in self.processes().into_iter().filter(|pid| Some(*pid) != init) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Kills all its processes at once: the first one takes the whole process namespace with it.
    pub(crate) fn kill(&self) -> Result<()> {
        let init = Pid::from_raw(i32::try_from(self.init_pid)?).context("no process")?;
        kill_process(init, Signal::KILL).context("cannot kill the node")
    }

    /// Plugs cables in or out, all at once.
    pub(crate) fn set_cables(&self, cables: &[&str], up: bool) {
        let state = if up { "up" } else { "down" };
        let lines = cables.iter().map(|cable| format!("link set {cable}{} {state}\n", self.n));
        // A cable whose node is gone has vanished with it.
        let _ = ip_batch(&lines.collect::<String>());
    }

    /// Bytes it has sent on the paths.
    pub(crate) fn wire_bytes(&mut self) -> u64 {
        let sum = PATH_CABLES.iter().map(|cable| sent_by(&format!("{cable}{}", self.n))).sum();
        self.wire_bytes = self.wire_bytes.max(sum);
        self.wire_bytes
    }

    /// Ends the capture of what the guest's address sent from here.
    pub(crate) fn captured(&mut self) -> Result<Vec<Seen>> {
        self.capture.take().map_or(Ok(Vec::new()), Capture::finish)
    }

    /// Begins its end, which takes its time: who has several ends all of them before waiting for one.
    pub(crate) fn end(&mut self) {
        // By its first process where there still is one: what waits for that one ends when the last process has.
        if matches!(self.init.try_wait(), Ok(None)) && self.kill().is_err() {
            let _ = self.init.kill();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
        let _ = self.init.wait();
    }
}

/// The one child of a process that is about to fork, or has.
fn child_of(parent: &mut Child) -> Result<u32> {
    let pid = parent.id();
    let path = format!("/proc/{pid}/task/{pid}/children");
    let deadline = clock::now() + Duration::from_secs(5);
    while clock::now() < deadline {
        let children = fs::read_to_string(&path).unwrap_or_default();
        if let Some(child) = children.split_whitespace().next().and_then(|c| c.parse().ok()) {
            let comm = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            // Until it has become `sleep`, its namespaces are not complete.
            if comm.trim() == "sleep" {
                return Ok(child);
            }
        }
        if let Some(status) = parent.try_wait()? {
            bail!("a node's first process has ended: {status}");
        }
        std::thread::yield_now();
    }
    bail!("a node's first process did not start")
}

#[cfg(test)]
mod tests {
    use mycelium_lab::net::PrivateNamespace;

    use super::*;

    fn mac_of(device: &str) -> String {
        let shown: serde_json::Value =
            serde_json::from_str(&ip(&format!("-j link show dev {device}")).unwrap()).unwrap();
        shown.pointer("/0/address").and_then(serde_json::Value::as_str).unwrap().to_owned()
    }

    /// Once a second's silence after every other takeover: the client's bridge took the MAC of the lost node's port, and
    /// frames to its new one never came.
    #[test]
    fn the_clients_mac_stays_when_a_node_comes_or_goes() {
        if PrivateNamespace::enter().is_err() {
            eprintln!("SKIPPED: no right to make a network namespace");
            return;
        }
        lay_bridges().unwrap();
        let before = mac_of("br-client");
        ip("link add low address 02:00:00:00:00:01 type veth peer name far").unwrap();
        ip("link set low master br-client").unwrap();
        assert_eq!(mac_of("br-client"), before);
        ip("link del low").unwrap();
        assert_eq!(mac_of("br-client"), before);
    }
}
