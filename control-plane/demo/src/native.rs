//! The world on this machine's own KVM: two nodes in namespaces of their own, and an arbiter outside both.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};
use mycelium_lab::net::PrivateNamespace;
use mycelium_ram::clock;
use mycelium_ram::events::Stamped;
use rustix::process::{Pid, Signal, kill_process};

use crate::arbiter::{Arbiter, Keys};
use crate::capture::Seen;
use crate::node::{self, ALL_CABLES, Node, PATH_CABLES, UDP_PAYLOAD};
use crate::options::{DemoOptions, Fault};
use crate::programs::Programs;
use crate::tail::Tail;
use crate::world::{Pace, World, last_lines};

const ARBITER: &str = "10.77.1.1:7600";
const PATH_PORT: u16 = 7700;
const NAMES: [&str; 2] = ["A", "B"];

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
    nodes: [NodeWorld; 2],
    _arbiter: Arbiter,
}

impl NativeWorld {
    /// Lays the network and starts arbiter, replica and VM. The calling thread moves into a namespace of its own.
    pub(crate) fn start(options: &DemoOptions, programs: &Programs, dir: &Path) -> Result<Self> {
        PrivateNamespace::enter()?;
        node::lay_bridges()?;
        let keys = Keys::make(dir)?;
        let arbiter = Arbiter::start(programs, &keys, ARBITER)?;
        fs::write(dir.join("vm.toml"), node::spec(programs))?;
        let mut nodes = [NodeWorld::start(0, dir)?, NodeWorld::start(1, dir)?];
        nodes[1].run_endophyte(programs, &keys, NAMES[1], options, &passive_args(&keys))?;
        nodes[0].run_endophyte(programs, &keys, NAMES[0], options, &active_args(&keys))?;
        Ok(Self { nodes, _arbiter: arbiter })
    }
}

fn path_sockets(n: usize) -> Vec<String> {
    node::path_addresses(n).iter().map(|address| format!("{address}:{PATH_PORT}")).collect()
}

fn active_args(keys: &Keys) -> Vec<String> {
    let ticket = format!("{}@{}", keys.nodes[1], path_sockets(1).join(","));
    vec!["active".into(), "--replica".into(), ticket]
}

fn passive_args(keys: &Keys) -> Vec<String> {
    let mut args = vec!["passive".into(), "--allow".into(), keys.nodes[0].to_string()];
    for address in path_sockets(1) {
        args.extend(["--listen".into(), address]);
    }
    args
}

impl NodeWorld {
    fn start(n: usize, dir: &Path) -> Result<Self> {
        let run_dir = dir.join(NAMES[n]);
        let tail = Tail::new(&run_dir.join("events.jsonl"));
        Ok(Self { node: Node::start(n, dir)?, endophyte: None, run_dir, tail })
    }

    fn run_endophyte(
        &mut self,
        programs: &Programs,
        keys: &Keys,
        name: &str,
        options: &DemoOptions,
        role: &[String],
    ) -> Result<()> {
        fs::create_dir_all(&self.run_dir)?;
        let log = fs::File::create(self.run_dir.join("endophyte.log"))?;
        let (role, rest) = role.split_first().context("no role")?;
        let mut command = self.node.enter(&programs.endophyte);
        command
            .arg(role)
            .arg("--spec")
            .arg(keys.dir.join("vm.toml"))
            .arg("--key")
            .arg(keys.dir.join(format!("{name}.key")))
            .args(["--arbiter", &format!("{}@{ARBITER}", keys.arbiter), "--run-dir"])
            .arg(&self.run_dir)
            .args(["--mtu", UDP_PAYLOAD, "--epoch-ms", &options.epoch_ms.to_string()])
            .args(rest)
            .stdout(log.try_clone()?)
            .stderr(log);
        self.endophyte = Some(command.spawn().context("cannot start endophyte")?);
        Ok(())
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
        &NAMES
    }

    fn events(&mut self, node: usize) -> Result<Vec<Stamped>> {
        Ok(self.nodes[node].tail.new_events())
    }

    fn lose(&mut self, node: usize, fault: Fault) -> Result<u64> {
        self.wire_bytes();
        let node = &self.nodes[node].node;
        let at = clock::now().0;
        match fault {
            Fault::Kill => {
                node.kill()?;
                node.set_cables(ALL_CABLES, false);
            }
            Fault::Stop => node.signal_all(Signal::STOP),
            Fault::Link => node.set_cables(PATH_CABLES, false),
        }
        Ok(at)
    }

    fn revive(&mut self, node: usize, fault: Fault) -> Result<()> {
        let NodeWorld { node, endophyte, .. } = &self.nodes[node];
        match fault {
            Fault::Kill => {}
            Fault::Stop => {
                // nsenter, outside, has stopped itself with its child.
                if let Some(outside) = endophyte {
                    let _ = kill_process(Pid::from_child(outside), Signal::CONT);
                }
                node.signal_all(Signal::CONT);
            }
            Fault::Link => node.set_cables(PATH_CABLES, true),
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
        let tail = |n: usize| last_lines(&self.nodes[n].run_dir.join("endophyte.log"));
        format!("node A:\n{}\nnode B:\n{}", tail(0), tail(1))
    }
}
