//! The world on this machine's own KVM: two nodes in namespaces of their own.
//!
//! ```text
//!   this namespace: client, arbiter        node A                  node B
//!     br-client 10.77.0.1 ── c0/c1 ────── guest0 ─ br0 ─ tap0      the same
//!     br-mgmt   10.77.1.1 ── m0/m1 ────── mgmt0 10.77.1.10+n
//!     br-path0            ── p0n0/p0n1 ── path0 10.77.16.10+n
//!     br-path1            ── p1n0/p1n1 ── path1 10.77.17.10+n
//! ```
//! The nodes share the paths, the arbiter and the clients' L2, and nothing else. Everything hangs on processes that die
//! with this one; there are no names to clean up.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mycelium_lab::net::PrivateNamespace;
use mycelium_ram::clock;
use mycelium_ram::events::Stamped;
use rustix::process::{Pid, Signal, kill_process};

use crate::arbiter::{Arbiter, Keys};
use crate::capture::{Capture, Seen};
use crate::options::{DemoOptions, Fault};
use crate::programs::Programs;
use crate::shell::{ip, run};
use crate::tail::Tail;
use crate::world::{Pace, Side, World, sent_by};

const MAC: &str = "02:6d:79:63:65:01";
const GUEST: &str = "10.77.0.100";
const PATHS: usize = 2;
const PATH_MTU: &str = "9000";
/// UDP payload of a 9000-byte packet.
const UDP_PAYLOAD: &str = "8952";
const ARBITER: &str = "10.77.1.1:7600";
const RAM_MIB: u32 = 256;

#[derive(Debug)]
struct NodeWorld {
    /// Holds the node's namespaces; its end is the node's end.
    init: Child,
    /// PID 1 of the node, as seen from here.
    init_pid: u32,
    endophyte: Option<Child>,
    run_dir: PathBuf,
    tail: Tail,
    capture: Option<Capture>,
    wire_bytes: u64,
}

/// The world.
#[derive(Debug)]
pub(crate) struct NativeWorld {
    nodes: [NodeWorld; 2],
    _arbiter: Arbiter,
}

/// Everything that has to be known to start the nodes.
impl NativeWorld {
    /// Lays the network and starts arbiter, replica and VM. The calling thread moves into a namespace of its own.
    pub(crate) fn start(options: &DemoOptions, programs: &Programs, dir: &Path) -> Result<Self> {
        PrivateNamespace::enter()?;
        lay_bridges()?;
        let keys = Keys::make(dir)?;
        let arbiter = Arbiter::start(programs, &keys, ARBITER)?;
        let mut nodes = [NodeWorld::start(Side::A, dir)?, NodeWorld::start(Side::B, dir)?];
        for side in Side::BOTH {
            write_spec(side, programs, dir)?;
            let capture = dir.join(format!("{side:?}.pcap"));
            nodes[side.index()].capture = Some(Capture::start(&format!("c{}", side.index()), MAC, &capture)?);
        }
        nodes[1].run_endophyte(programs, &keys, Side::B, options, &passive_args(&keys))?;
        nodes[0].run_endophyte(programs, &keys, Side::A, options, &active_args(&keys))?;
        Ok(Self { nodes, _arbiter: arbiter })
    }
}

fn lay_bridges() -> Result<()> {
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

fn write_spec(side: Side, programs: &Programs, dir: &Path) -> Result<()> {
    let spec = format!(
        "name = \"demo\"\nvcpus = 1\nram_mib = {RAM_MIB}\nkernel = {:?}\ncmdline = \"ip={GUEST}/24 gw=10.77.0.1\"\n\
         serial = \"null\"\n\n[[net]]\ntap = \"tap0\"\nmac = \"{MAC}\"\n",
        programs.native_guest
    );
    Ok(fs::write(dir.join(format!("{side:?}.toml")), spec)?)
}

fn path_addresses(side: Side) -> Vec<String> {
    (0..PATHS).map(|path| format!("10.77.{}.{}:7700", 16 + path, 10 + side.index())).collect()
}

fn active_args(keys: &Keys) -> Vec<String> {
    let ticket = format!("{}@{}", keys.nodes[1], path_addresses(Side::B).join(","));
    vec!["active".into(), "--replica".into(), ticket]
}

fn passive_args(keys: &Keys) -> Vec<String> {
    let mut args = vec!["passive".into(), "--allow".into(), keys.nodes[0].to_string()];
    for address in path_addresses(Side::B) {
        args.extend(["--listen".into(), address]);
    }
    args
}

impl NodeWorld {
    fn start(side: Side, dir: &Path) -> Result<Self> {
        let init = Command::new("setpriv")
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
        let init_pid = child_of(init.id())?;
        let run_dir = dir.join(format!("{side:?}"));
        let tail = Tail::new(&run_dir.join("events.jsonl"));
        let node = Self { init, init_pid, endophyte: None, run_dir, tail, capture: None, wire_bytes: 0 };
        node.wire_up(side.index())?;
        Ok(node)
    }

    fn wire_up(&self, n: usize) -> Result<()> {
        let last = 10 + n;
        let cables = [
            (format!("c{n}"), "br-client", "guest0".to_owned(), None, "1500"),
            (format!("m{n}"), "br-mgmt", "mgmt0".to_owned(), Some(format!("10.77.1.{last}/24")), "1500"),
            (
                format!("p0n{n}"),
                "br-path0",
                "path0".to_owned(),
                Some(format!("10.77.16.{last}/24")),
                PATH_MTU,
            ),
            (
                format!("p1n{n}"),
                "br-path1",
                "path1".to_owned(),
                Some(format!("10.77.17.{last}/24")),
                PATH_MTU,
            ),
        ];
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

    fn run_endophyte(
        &mut self,
        programs: &Programs,
        keys: &Keys,
        side: Side,
        options: &DemoOptions,
        role: &[String],
    ) -> Result<()> {
        fs::create_dir_all(&self.run_dir)?;
        let log = fs::File::create(self.run_dir.join("endophyte.log"))?;
        let (role, rest) = role.split_first().context("no role")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter", "--target", &self.init_pid.to_string()])
            .args(["--net", "--pid", "--mount", "--"])
            .arg(&programs.endophyte)
            .arg(role)
            .arg("--spec")
            .arg(keys.dir.join(format!("{side:?}.toml")))
            .arg("--key")
            .arg(keys.dir.join(format!("{side:?}.key")))
            .args(["--arbiter", &format!("{}@{ARBITER}", keys.arbiter), "--run-dir"])
            .arg(&self.run_dir)
            .args(["--mtu", UDP_PAYLOAD, "--epoch-ms", &options.epoch_ms.to_string()])
            .args(rest)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.endophyte = Some(command.spawn().context("cannot start endophyte")?);
        Ok(())
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

    fn signal_all(&self, signal: Signal) {
        for pid in self.processes() {
            let _ = kill_process(pid, signal);
        }
    }

    fn set_cables(&self, n: usize, cables: &[&str], up: bool) {
        for cable in cables {
            // A cable whose node is gone has vanished with it.
            let _ = ip(&format!("link set {cable}{n} {}", if up { "up" } else { "down" }));
        }
    }
}

/// The one child of a process that is about to fork, or has.
fn child_of(pid: u32) -> Result<u32> {
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
        std::thread::yield_now();
    }
    bail!("a node's first process did not start")
}

impl World for NativeWorld {
    fn kvm(&self) -> String {
        let loaded = |module: &&str| Path::new("/sys/module").join(module).exists();
        let kind = ["kvm_pvm", "kvm_amd", "kvm_intel"].into_iter().find(loaded);
        format!("{} on this machine", kind.unwrap_or("kvm"))
    }

    fn pace(&self) -> Pace {
        Pace {
            start: Duration::from_secs(60),
            reply: Duration::from_secs(20),
            think: Duration::ZERO,
            before_loss: (Duration::from_secs(2), Duration::from_secs(4)),
            epochs: 110,
            acks: 550,
            after: Duration::from_secs(2),
        }
    }

    fn server(&self) -> SocketAddr {
        SocketAddr::from(([10, 77, 0, 100], 6379))
    }

    fn events(&mut self, side: Side) -> Result<Vec<Stamped>> {
        Ok(self.nodes[side.index()].tail.new_events())
    }

    fn lose(&mut self, fault: Fault) -> Result<u64> {
        self.wire_bytes();
        let node = &self.nodes[0];
        let at = clock::now().0;
        match fault {
            Fault::Kill => {
                // The first process takes the whole process namespace with it.
                let init = Pid::from_raw(i32::try_from(node.init_pid)?).context("no process")?;
                kill_process(init, Signal::KILL).context("cannot kill the node")?;
                node.set_cables(0, &["c", "m", "p0n", "p1n"], false);
            }
            Fault::Stop => node.signal_all(Signal::STOP),
            Fault::Link => node.set_cables(0, &["p0n", "p1n"], false),
        }
        Ok(at)
    }

    fn revive(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => {}
            Fault::Stop => {
                let node = &self.nodes[0];
                // nsenter, outside, has stopped itself with its child.
                if let Some(outside) = &node.endophyte {
                    let _ = kill_process(Pid::from_child(outside), Signal::CONT);
                }
                node.signal_all(Signal::CONT);
            }
            Fault::Link => self.nodes[0].set_cables(0, &["p0n", "p1n"], true),
        }
        Ok(())
    }

    fn exit_of_a(&mut self) -> Option<i32> {
        self.nodes[0].endophyte.as_mut()?.try_wait().ok()??.code()
    }

    fn wire_bytes(&mut self) -> u64 {
        for (n, node) in self.nodes.iter_mut().enumerate() {
            let sum: u64 = (0..PATHS).map(|path| sent_by(&format!("p{path}n{n}"))).sum();
            node.wire_bytes = node.wire_bytes.max(sum);
        }
        self.nodes.iter().map(|node| node.wire_bytes).sum()
    }

    fn console(&self, side: Side) -> Vec<u8> {
        fs::read(self.nodes[side.index()].run_dir.join("serial.log")).unwrap_or_default()
    }

    fn captures(&mut self) -> Result<[Vec<Seen>; 2]> {
        let [a, b] = &mut self.nodes;
        let finish = |node: &mut NodeWorld| node.capture.take().map_or(Ok(Vec::new()), Capture::finish);
        Ok([finish(a)?, finish(b)?])
    }

    fn logs(&self) -> String {
        let tail = |node: &NodeWorld| {
            let log = fs::read_to_string(node.run_dir.join("endophyte.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(12)..].join("\n")
        };
        format!("node A:\n{}\nnode B:\n{}", tail(&self.nodes[0]), tail(&self.nodes[1]))
    }
}

impl Drop for NativeWorld {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.init.kill();
            let _ = node.init.wait();
            if let Some(endophyte) = &mut node.endophyte {
                let _ = endophyte.kill();
                let _ = endophyte.wait();
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
