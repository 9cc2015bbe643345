//! The figures of the slice, measured on real daemons and a real containerd: one JSON object a line.
//!
//! `cargo xtask bench slice` runs it with the programs it needs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bench_figures::{Better, Goal, Measured, Spread};
use mycelium_arbiter::client::{Client, Port};
use mycelium_ram::ports::Arbiter;
use mycelium_ram_core::record::{Change, LossPolicy, Swap};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{EpochId, Incarnation, Member, NodeId, OpId, VmId};
use rhizomorph_link::{Identity, Ticket};
use slice_tests::containerd::{NATIVE, PLAIN};
use slice_tests::network::{Network, Node, alive};
use slice_tests::world::{MEMORY, World, eventually, pids};
use tokio::sync::mpsc;

/// Networks formed, and leaders lost.
const NETWORKS: usize = 7;
const SWAPS: u64 = 400;
const PODS: usize = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let run = std::process::id().to_string();
    let mut figures = Figures { run };
    networks(&mut figures).await?;
    pods(&mut figures).await
}

/// Prints figures as DESIGN's JSON lines.
struct Figures {
    run: String,
}

impl Figures {
    /// Figures whose values are the better the lower.
    fn tell(
        &mut self,
        name: &str,
        unit: &'static str,
        values: Vec<f64>,
        peer: Option<(&str, Vec<f64>)>,
        goal: &str,
    ) -> Result<()> {
        let ours = Spread::of(values).with_context(|| format!("no values for {name}"))?;
        let peers = peer.into_iter().map(|(name, values)| (name.to_owned(), Spread::of(values))).collect();
        let (better, goal) = (Better::Lower, Goal::parse(goal)?);
        let figure = Measured { name: name.to_owned(), unit, better, ours, peers, goal }.judge(&self.run);
        println!("{}", serde_json::to_string(&figure)?);
        Ok(())
    }
}

async fn networks(figures: &mut Figures) -> Result<()> {
    let (mut form, mut rss, mut cas, mut loss) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..NETWORKS {
        eprintln!("network {} of {NETWORKS}", n + 1);
        let begun = Instant::now();
        let Some(mut network) = Network::lay(3).await? else { bail!("this machine lacks something") };
        network.form().await?;
        form.push(begun.elapsed().as_secs_f64());
        eventually("a leader everywhere", || {
            network.nodes().iter().all(|node| node.status().is_ok_and(|s| s["leader"] != ""))
        })
        .await?;
        network.reach()?;
        let vm = VmId::new(format!("bench-{n}"))?;
        let mut asker = Asker::of(network.node("b"), network.node("c"), vm)?;
        asker.create().await?;
        if n == 0 {
            let mut kept = asker.keep();
            asker.swap_over(&mut kept).await?;
            for _ in 0..SWAPS {
                cas.push(millis(asker.swap_over(&mut kept).await?));
            }
        }
        rss.extend(network.nodes().iter().filter_map(Node::daemon_pid).filter_map(rss_mib));
        // The founder leads: nobody has had a reason to elect another.
        network.node_mut("a").lose();
        let lost = Instant::now();
        while asker.swap().await.is_err() {
            if lost.elapsed() > Duration::from_secs(20) {
                bail!("the arbiter has not answered for 20 s");
            }
        }
        loss.push(millis(lost.elapsed()));
        let left = network.node("b").status()?;
        eprintln!("  {} nodes alive", alive(&left));
    }
    figures.tell("slice.form", "s", form, None, "p50 <= 3")?;
    figures.tell("slice.node_rss", "MiB", rss, None, "p99 <= 40")?;
    figures.tell("slice.cas", "ms", cas, None, "p50 <= 2")?;
    figures.tell("slice.leader_loss", "ms", loss, None, "p99 <= 1000")
}

async fn pods(figures: &mut Figures) -> Result<()> {
    let Some(world) = World::make().await? else { bail!("this machine lacks something") };
    let (mut vms, mut runc, mut rss) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..PODS {
        eprintln!("pod {} of {PODS}", n + 1);
        let begun = Instant::now();
        let (pod, _) = world.cri.run(&world.spec(&format!("vm-{n}")), NATIVE, Some(MEMORY)).await?;
        vms.push(millis(begun.elapsed()));
        let shims = pids("containerd-shim-endophyte-v2", &pod.id);
        rss.extend(shims.iter().filter_map(|pid| rss_mib(pid.parse().ok()?)));
        world.cri.remove_pod(&pod).await?;
        let mut spec = world.spec(&format!("runc-{n}"));
        "runc".clone_into(&mut spec.handler);
        let begun = Instant::now();
        let (pod, _) = world.cri.run(&spec, PLAIN, None).await?;
        runc.push(millis(begun.elapsed()));
        world.cri.remove_pod(&pod).await?;
    }
    let peer = Some(("runc, busybox", runc));
    figures.tell("slice.pod_start", "ms", vms, peer, "printed")?;
    figures.tell("slice.shim_rss", "MiB", rss, None, "p99 <= 10")?;
    world.is_clean().await
}

/// A kept connection to the arbiter.
struct Kept {
    port: Arc<Port>,
    replies: mpsc::UnboundedReceiver<Reply>,
}

/// Proposes swaps in the name of a node, to daemons that do not lead.
struct Asker {
    client: Client,
    vm: VmId,
    me: Member,
    count: u64,
    version: u64,
}

impl Asker {
    fn of(node: &Node, other: &Node, vm: VmId) -> Result<Self> {
        let identity = Identity::load(&node.key_file())?;
        let ticket = |node: &Node| -> Result<Ticket> {
            let addr: SocketAddr = node.listen().parse()?;
            Ok(Ticket { key: Identity::load(&node.key_file())?.peer_key(), addrs: vec![addr] })
        };
        let me = Member { node: NodeId(identity.peer_key().0), incarnation: Incarnation(1) };
        let client = Client::new(&identity, &[ticket(node)?, ticket(other)?], vm.clone())?;
        Ok(Self { client, vm, me, count: 0, version: 0 })
    }

    async fn create(&mut self) -> Result<()> {
        self.propose(Change::Create { policy: LossPolicy::Degrade }).await.map(drop)
    }

    /// One compare-and-swap that changes the record; how long it took.
    async fn swap(&mut self) -> Result<Duration> {
        let change = Change::List { member: self.me, since: EpochId(self.count) };
        let begun = Instant::now();
        self.propose(change).await?;
        Ok(begun.elapsed())
    }

    /// A connection that stays, as every VM's process has one.
    fn keep(&self) -> Kept {
        let (send, replies) = mpsc::unbounded_channel();
        Kept { port: self.client.clone().start(move |reply| drop(send.send(reply))), replies }
    }

    /// The same over a kept connection, whose first use makes it.
    async fn swap_over(&mut self, kept: &mut Kept) -> Result<Duration> {
        let request = self.request(Change::List { member: self.me, since: EpochId(self.count) });
        let begun = Instant::now();
        kept.port.ask(request);
        let reply = tokio::time::timeout(Duration::from_secs(5), kept.replies.recv()).await?;
        let took = begun.elapsed();
        self.take(reply.context("the arbiter's client has ended")?)?;
        Ok(took)
    }

    fn request(&mut self, change: Change) -> Request {
        self.count += 1;
        let op = OpId { incarnation: self.me.incarnation, count: self.count };
        let (vm, expected_version) = (self.vm.clone(), self.version);
        Request::Swap(Swap { vm, expected_version, proposer: self.me, op, change })
    }

    async fn propose(&mut self, change: Change) -> Result<()> {
        let request = self.request(change);
        let reply = self.client.ask(request).await?;
        self.take(reply)
    }

    fn take(&mut self, reply: Reply) -> Result<()> {
        match reply {
            Reply::Applied { record, .. } => self.version = record.version,
            // An earlier attempt without an answer was applied after all.
            Reply::Refused { record: Some(record), .. } => self.version = record.version,
            other => bail!("the arbiter said {other:?}"),
        }
        Ok(())
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn rss_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
