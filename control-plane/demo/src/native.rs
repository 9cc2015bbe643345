//! The world on this machine's own KVM: two nodes in namespaces of their own, and an arbiter outside both.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use mycelium_lab::net::PrivateNamespace;
use mycelium_ram::clock;
use mycelium_ram::events::Stamped;
use rustix::process::{Pid, Signal, kill_process};

use crate::arbiter::{Arbiter, Keys};
use crate::capture::Seen;
use crate::node::{self, ALL_CABLES, ARBITER_CABLE, Node, PATH_CABLES, UDP_PAYLOAD};
use crate::options::{DemoOptions, Fault};
use crate::programs::Programs;
use crate::tail::Tail;
use crate::world::{Pace, World, last_lines};

const ARBITER: &str = "10.77.1.1:7600";
const PATH_PORT: u16 = 7700;
const NAMES: &[&str] = &["A", "B", "C"];
/// The one that holds the first replica.
const REPLICA: usize = 1;

#[derive(Debug)]
struct NodeWorld {
    node: Node,
    endophyte: Option<Child>,
    run_dir: PathBuf,
    tail: Tail,
}

/// The world.
#[derive(Debug)]
pub(crate) struct NativeWorld {
    nodes: Vec<NodeWorld>,
    arbiter: Option<Arbiter>,
    programs: Programs,
    keys: Keys,
    options: DemoOptions,
}

impl NativeWorld {
    /// Lays the network and starts arbiter, replica and VM. The calling thread moves into a namespace of its own.
    pub(crate) fn start(options: &DemoOptions, programs: &Programs, dir: &Path) -> Result<Self> {
        PrivateNamespace::enter()?;
        node::lay_bridges()?;
        let names = &NAMES[..=usize::from(options.losses)];
        let keys = Keys::make(dir, names)?;
        let arbiter = Arbiter::start(programs, &keys, ARBITER)?;
        fs::write(dir.join("vm.toml"), node::spec(programs))?;
        let nodes = (0..names.len()).map(|n| NodeWorld::start(n, dir)).collect::<Result<_>>()?;
        let (programs, options) = (programs.clone(), options.clone());
        let mut world = Self { nodes, arbiter: Some(arbiter), programs, keys, options };
        (0..names.len()).rev().try_for_each(|n| world.run_endophyte(n))?;
        Ok(world)
    }

    fn run_endophyte(&mut self, n: usize) -> Result<()> {
        let Self { programs, keys, options, .. } = self;
        let node = &self.nodes[n];
        fs::create_dir_all(&node.run_dir)?;
        let log =
            fs::OpenOptions::new().create(true).append(true).open(node.run_dir.join("endophyte.log"))?;
        let mut command = node.node.enter(&programs.endophyte);
        command
            .arg(if n == 0 { "active" } else { "passive" })
            .arg("--spec")
            .arg(keys.dir.join("vm.toml"))
            .arg("--key")
            .arg(keys.dir.join(format!("{}.key", NAMES[n])))
            .args(["--arbiter", &format!("{}@{ARBITER}", keys.arbiter), "--run-dir"])
            .arg(&node.run_dir)
            .arg("--api")
            .arg(node.api())
            .args(["--mtu", UDP_PAYLOAD, "--epoch-ms", &options.epoch_ms.to_string()])
            .stdout(log.try_clone()?)
            .stderr(log);
        // Each keeps a replica on the next, once it is the active.
        if let Some(key) = keys.nodes.get(n + 1) {
            command.args(["--replica", &format!("{key}@{}", path_sockets(n + 1).join(","))]);
        }
        if let Some(before) = n.checked_sub(1) {
            command.args(["--allow", &keys.nodes[before].to_string()]);
            for at in path_sockets(n) {
                command.args(["--listen", &at]);
            }
        }
        if let (0, Some(phase)) = (n, options.phase) {
            command.args(["--drill", phase.name()]);
        }
        self.nodes[n].endophyte = Some(command.spawn().context("cannot start endophyte")?);
        Ok(())
    }
}

/// As an operator would.
fn hand_over(programs: &Programs, api: &Path) -> Result<()> {
    let mut command = Command::new(&programs.mycelium);
    command.args(["vm", "failover", "--planned", "--api"]).arg(api).stdin(Stdio::null());
    let output = command.output().context("cannot ask for a handover")?;
    ensure!(output.status.success(), "no handover: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

fn path_sockets(n: usize) -> Vec<String> {
    node::path_addresses(n).iter().map(|address| format!("{address}:{PATH_PORT}")).collect()
}

impl NodeWorld {
    fn start(n: usize, dir: &Path) -> Result<Self> {
        let run_dir = dir.join(NAMES[n]);
        let tail = Tail::new(&run_dir.join("events.jsonl"));
        Ok(Self { node: Node::start(n, dir)?, endophyte: None, run_dir, tail })
    }

    fn api(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }
}

impl Drop for NodeWorld {
    fn drop(&mut self) {
        if let Some(endophyte) = &mut self.endophyte {
            let _ = endophyte.kill();
            let _ = endophyte.wait();
        }
    }
}

impl World for NativeWorld {
    fn kvm(&self) -> String {
        node::kvm()
    }

    fn pace(&self) -> Pace {
        Pace::of_this_machine()
    }

    fn server(&self) -> SocketAddr {
        node::server()
    }

    fn names(&self) -> &'static [&'static str] {
        &NAMES[..self.nodes.len()]
    }

    fn events(&mut self, node: usize) -> Result<Vec<Stamped>> {
        Ok(self.nodes[node].tail.new_events())
    }

    fn hold_epoch(&mut self, node: usize) -> Result<()> {
        Ok(fs::write(self.nodes[node].run_dir.join("drill"), "")?)
    }

    fn lose(&mut self, node: usize, fault: Fault) -> Result<u64> {
        self.wire_bytes();
        let api = self.nodes[node].api();
        let NodeWorld { node, .. } = &self.nodes[node];
        let at = clock::now().0;
        match fault {
            Fault::Kill => {
                node.kill()?;
                node.set_cables(ALL_CABLES, false);
            }
            Fault::Stop => node.signal_all(Signal::STOP),
            Fault::Link => node.set_cables(PATH_CABLES, false),
            Fault::HandOver => hand_over(&self.programs, &api)?,
            Fault::ArbiterLink => node.set_cables(ARBITER_CABLE, false),
            Fault::Replica => self.nodes[REPLICA].node.kill_programs(),
            Fault::Arbiter => self.arbiter = None,
        }
        Ok(at)
    }

    fn revive(&mut self, node: usize, fault: Fault) -> Result<()> {
        let NodeWorld { node, endophyte, .. } = &mut self.nodes[node];
        match fault {
            Fault::Kill | Fault::HandOver => {}
            Fault::Stop => {
                // nsenter, outside, has stopped itself with its child.
                if let Some(outside) = endophyte {
                    let _ = kill_process(Pid::from_child(outside), Signal::CONT);
                }
                node.signal_all(Signal::CONT);
            }
            Fault::Link => node.set_cables(PATH_CABLES, true),
            Fault::ArbiterLink => node.set_cables(ARBITER_CABLE, true),
            Fault::Replica => {
                if let Some(killed) = &mut self.nodes[REPLICA].endophyte {
                    killed.wait()?;
                }
                self.run_endophyte(REPLICA)?;
            }
            Fault::Arbiter => self.arbiter = Some(Arbiter::start(&self.programs, &self.keys, ARBITER)?),
        }
        Ok(())
    }

    fn exit_of(&mut self, node: usize) -> Option<i32> {
        self.nodes[node].endophyte.as_mut()?.try_wait().ok()??.code()
    }

    fn wire_bytes(&mut self) -> u64 {
        self.nodes.iter_mut().map(|node| node.node.wire_bytes()).sum()
    }

    fn console(&self, node: usize) -> Vec<u8> {
        fs::read(self.nodes[node].run_dir.join("serial.log")).unwrap_or_default()
    }

    fn captures(&mut self) -> Result<Vec<Vec<Seen>>> {
        self.nodes.iter_mut().map(|node| node.node.captured()).collect()
    }

    fn logs(&self) -> String {
        let tail = |(node, name): (&NodeWorld, &&str)| {
            format!("node {name}:\n{}", last_lines(&node.run_dir.join("endophyte.log")))
        };
        self.nodes.iter().zip(NAMES).map(tail).collect::<Vec<_>>().join("\n")
    }
}
