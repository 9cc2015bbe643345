//! Figures of the Primary spore on loopback: how fast three nodes form, what a swap costs through a follower, how soon the
//! arbiter answers again after its leader is gone. Prints one JSON object a line.
//!
//! `cargo run -p mycelium-spores --example figures -- [TRIALS] [SWAPS]`

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use mycelium_identity::NodeFolder;
use mycelium_ram_core::record::{Change, LossPolicy, Swap};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{EpochId, Incarnation, Member, NodeId, OpId, VmId};
use mycelium_spores::{Spore, SporeConfig};

type AnyError = Box<dyn Error>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u32>());
    let trials = arguments.next().transpose()?.unwrap_or(20);
    let swaps = arguments.next().transpose()?.unwrap_or(500);
    let (mut formed, mut cas, mut reads, mut again) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..trials {
        let dir = scratch()?;
        let begun = Instant::now();
        let mut nodes = network(dir.path()).await?;
        formed.push(begun.elapsed());
        let status = nodes[0].status().await;
        let leads = |node: &Spore| status.leader == Some(node.node());
        let follower = nodes.iter().position(|n| !leads(n)).ok_or("no follower")?;
        measure(&nodes[follower], swaps / trials + 1, &mut cas, &mut reads).await?;
        let leader = nodes.iter().position(leads).ok_or("no leader")?;
        let follower = nodes[follower].clone();
        let killed = Instant::now();
        drop(nodes.remove(leader));
        while follower.answer(vm()?, Request::Read).await.is_err() {}
        again.push(killed.elapsed());
        drop(follower);
        for node in nodes {
            node.shutdown().await;
        }
    }
    show("spores.formation_three_nodes", formed);
    show("spores.swap_through_follower", cas);
    show("spores.read_through_follower", reads);
    show("spores.answer_after_leader_loss", again);
    Ok(())
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch() -> Result<Scratch, AnyError> {
    let path = std::env::temp_dir().join(format!("spores-figures-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&path)?;
    Ok(Scratch(path))
}

/// Three nodes, all of them voting.
async fn network(dir: &Path) -> Result<Vec<Spore>, AnyError> {
    let config = |name: &str| -> Result<SporeConfig, AnyError> {
        Ok(SporeConfig::new(NodeFolder::open(&dir.join(name))?, name, "127.0.0.1:0".parse()?))
    };
    let first = Spore::found(config("a")?).await?;
    let mut nodes = vec![first];
    for name in ["b", "c"] {
        let invitation = nodes[0].invite(Duration::from_secs(60))?.to_string();
        nodes.push(Spore::join(config(name)?, &invitation).await?);
    }
    while nodes[2].status().await.voters().len() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(nodes)
}

fn vm() -> Result<VmId, AnyError> {
    Ok(VmId::new("vm")?)
}

async fn measure(
    node: &Spore,
    count: u32,
    swaps: &mut Vec<Duration>,
    reads: &mut Vec<Duration>,
) -> Result<(), AnyError> {
    let proposer = Member { node: node.node(), incarnation: Incarnation(1) };
    let replica = Member { node: NodeId([7; 32]), incarnation: Incarnation(2) };
    let mut version = 0;
    for turn in 0..u64::from(count) {
        let change = match turn {
            0 => Change::Create { policy: LossPolicy::Degrade },
            n if n % 2 == 1 => Change::List { member: replica, since: EpochId(n) },
            _ => Change::Unlist { member: replica },
        };
        let op = OpId { incarnation: proposer.incarnation, count: turn };
        let swap = Swap { vm: vm()?, expected_version: version, proposer, op, change };
        let begun = Instant::now();
        let Reply::Applied { record, .. } = node.answer(vm()?, Request::Swap(swap)).await? else {
            return Err("a swap was refused".into());
        };
        swaps.push(begun.elapsed());
        version = record.version;
        let begun = Instant::now();
        node.answer(vm()?, Request::Read).await?;
        reads.push(begun.elapsed());
    }
    Ok(())
}

fn show(figure: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_micros();
    let (p50, p99, max, n) = (at(50), at(99), at(100), times.len());
    println!(
        r#"{{"figure":"{figure}","unit":"us","better":"lower","ours":{{"p50":{p50},"p99":{p99},"max":{max},"n":{n}}}}}"#
    );
}
