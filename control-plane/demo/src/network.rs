//! The world of a network: three nodes in namespaces of their own, on each a daemon, `mycelium node run`. The daemons decide
//! where replicas go and who runs the VM; nothing outside them does. The cables are those of `node.rs`.

mod chronicle;
mod daemons;
mod verdict;
mod watch;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use mycelium_api::RunVmRequest;
use mycelium_lab::net::PrivateNamespace;
use mycelium_ram::clock;
use mycelium_ram::events::Stamped;

pub(crate) use chronicle::Chronicle;
pub use verdict::{NetworkVerdict, NodeVerdict, Reprotected, SecondTakeover};

use crate::capture::Seen;
use crate::node::{self, ALL_CABLES, Node};
use crate::options::Fault;
use crate::programs::Programs;
use crate::story::Story;
use crate::tail::Tail;
use crate::world::{Pace, World, last_lines};
use daemons::{Asking, Daemon};
use watch::Watch;

const NAMES: [&str; 3] = ["a", "b", "c"];
/// The VM's name in the spec.
const VM: &str = "demo";

#[derive(Debug)]
struct NodeWorld {
    daemon: Daemon,
    node: Node,
    tail: Tail,
}

/// The world. Nodes end before the watch on their daemons.
#[derive(Debug)]
pub(crate) struct NetworkWorld {
    nodes: Vec<NodeWorld>,
    watch: Option<Watch>,
}

impl NetworkWorld {
    /// Lays the network, starts the daemons, forms a network of them and runs a protected VM on the first. The calling
    /// thread moves into a namespace of its own.
    pub(crate) fn start(
        programs: &Programs,
        dir: &Path,
        story: &Story,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self> {
        PrivateNamespace::enter()?;
        node::lay_bridges()?;
        let mut world = Self { nodes: Vec::new(), watch: None };
        for (n, name) in NAMES.into_iter().enumerate() {
            let node = Node::start(n, dir)?;
            let daemon = Daemon::start(&node, n, name, programs, dir)?;
            let tail = Tail::new(&daemon.vm_folder(VM).join("run/events.jsonl"));
            world.nodes.push(NodeWorld { daemon, node, tail });
        }
        let formed = world.form(programs, story, interrupted);
        formed.map_err(|error| {
            error.context(format!("the nodes' last words:\n{}\nfailed", world.logs().trim_end()))
        })?;
        Ok(world)
    }

    fn form(&mut self, programs: &Programs, story: &Story, interrupted: &Arc<AtomicBool>) -> Result<()> {
        let asking = Asking::new(interrupted)?;
        let daemons: Vec<&Daemon> = self.nodes.iter().map(|node| &node.daemon).collect();
        let keys = daemons::form(&asking, &daemons, story)?;
        let sockets = daemons.iter().map(|daemon| daemon.socket());
        self.watch = Some(Watch::start(Chronicle::new(&NAMES, keys), sockets)?);
        let ask = RunVmRequest {
            spec: node::spec(programs),
            protect: true,
            on_loss: "degrade".to_owned(),
            ..RunVmRequest::default()
        };
        let run =
            asking.of(daemons[0], "to run the VM", async |mut daemon| daemon.run_vm(ask.clone()).await)?;
        story.mark(clock::now().0, &format!("node {} runs VM {}, to be protected", run.node_name, run.name));
        Ok(())
    }

    fn watch(&self) -> Result<&Watch> {
        self.watch.as_ref().context("the daemons form no network yet")
    }
}

impl Drop for NetworkWorld {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.node.end());
    }
}

impl World for NetworkWorld {
    fn kvm(&self) -> String {
        node::kvm()
    }

    /// Clients pause: the machine also runs three nodes.
    fn pace(&self) -> Pace {
        Pace { think: Duration::from_millis(1), ..Pace::of_this_machine() }
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

    fn news(&mut self) -> Vec<(u64, String)> {
        self.watch.as_ref().map(Watch::news).unwrap_or_default()
    }

    fn decides_without(&self, node: usize) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.chronicle().decides_without(node))
    }

    /// Cables first, so that nobody hears the node die.
    fn lose(&mut self, node: usize, _: Fault) -> Result<u64> {
        self.wire_bytes();
        let at = clock::now().0;
        self.watch()?.lost(node);
        let node = &self.nodes[node].node;
        node.set_cables(ALL_CABLES, false);
        node.kill()?;
        Ok(at)
    }

    fn revive(&mut self, _: usize, _: Fault) -> Result<()> {
        Ok(())
    }

    fn exit_of(&mut self, _: usize) -> Option<i32> {
        None
    }

    fn wire_bytes(&mut self) -> u64 {
        self.nodes.iter_mut().map(|node| node.node.wire_bytes()).sum()
    }

    fn console(&self, node: usize) -> Vec<u8> {
        fs::read(self.nodes[node].daemon.vm_folder(VM).join("run/serial.log")).unwrap_or_default()
    }

    fn captures(&mut self) -> Result<Vec<Vec<Seen>>> {
        self.nodes.iter_mut().map(|node| node.node.captured()).collect()
    }

    fn logs(&self) -> String {
        let of = |daemon: &Daemon| {
            let vm = last_lines(&daemon.vm_folder(VM).join("endophyte.log"));
            format!("node {}, daemon:\n{}\nnode {0}, VM:\n{vm}\n", daemon.name(), last_lines(&daemon.log()))
        };
        self.nodes.iter().map(|node| of(&node.daemon)).collect()
    }

    fn chronicle(&self) -> Option<Chronicle> {
        self.watch.as_ref().map(Watch::chronicle)
    }
}
