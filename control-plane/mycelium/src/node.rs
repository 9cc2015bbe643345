//! `mycelium node`: this node's daemon, and the network's nodes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use mycelium_api::{ListVmsRequest, Member, StatusRequest};
use mycelium_node::NodeConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::output::{Asking, block_on, mib, plain, say, short, table};

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Run this node's daemon. VMs it started go on when it ends, and the next daemon finds them again.
    Run(RunArgs),
    /// Show the nodes of the network and what they have free.
    List(#[command(flatten)] Asking),
    /// Show one node with its VMs.
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Folder for the node's key, what it knows of its network, and its VMs.
    #[arg(long, value_name = "DIR", default_value = mycelium_api::FOLDER)]
    dir: PathBuf,
    /// Name of the node in the network; the host's name if not given.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Address for other nodes' daemons (UDP).
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where others reach it, if that differs; may be given several times.
    #[arg(long, value_name = "ADDRESS")]
    advertise: Vec<SocketAddr>,
    /// Address of this node for replication; every one is a path of its own. Without it: the address it listens on.
    #[arg(long, value_name = "IP")]
    path: Vec<IpAddr>,
    /// Largest UDP payload of the paths: 1452 works everywhere, 8952 where the MTU is 9000 all the way.
    #[arg(long, value_name = "BYTES", default_value_t = 1452, value_parser = clap::value_parser!(u16).range(1200..=16000))]
    mtu: u16,
    /// Silence of a VM below this never makes its replica here take over. More, where processors are so busy that
    /// takeovers happen for nothing; every failover takes longer by it. Keep it above the paths' round trip time.
    #[arg(long, value_name = "MS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=60_000))]
    detect_ms: u64,
    /// The daemon's own socket, for this command line and the containerd shim.
    #[arg(long, value_name = "PATH", default_value = mycelium_api::SOCKET, env = "MYCELIUM_SOCKET")]
    socket: PathBuf,
    /// The VMM; the one beside this program, or of the PATH, if not given.
    #[arg(long, value_name = "FILE")]
    endophyte: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    asking: Asking,
    /// The node's name, or the beginning of its key.
    node: String,
}

pub(crate) fn run(command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::Run(args) => serve(args),
        NodeCommand::List(asking) => block_on(list(&asking)),
        NodeCommand::Inspect(args) => block_on(inspect(&args)),
    }
}

fn serve(args: RunArgs) -> Result<()> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let config = NodeConfig {
        folder: args.dir,
        name: args.name.unwrap_or(host),
        listen: args.listen,
        advertise: args.advertise,
        paths: args.path,
        mtu: args.mtu,
        detect_ms: args.detect_ms,
        api: args.socket,
        endophyte: args.endophyte.unwrap_or_else(vmm),
    };
    // Two workers: a sole voter writes its decisions to disk before it answers, and others must be heard meanwhile.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (tell, stop) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            tell.send_replace(true);
        });
        say(&format!("node {} answers on {}", config.name, config.api.display()));
        mycelium_node::run(config, stop).await.context("the daemon cannot go on")
    })
}

fn vmm() -> PathBuf {
    let beside =
        std::env::current_exe().ok().map(|me| me.with_file_name("endophyte")).filter(|p| p.is_file());
    beside.unwrap_or_else(|| "endophyte".into())
}

async fn members(asking: &Asking) -> Result<Vec<Member>> {
    let status = asking.daemon().await?.status(StatusRequest {}).await.map_err(|s| plain(&s))?.into_inner();
    if status.state == "outside" {
        bail!(
            "this node is in no network; make one (mycelium network init) or join one (mycelium network join)"
        );
    }
    Ok(status.members)
}

async fn list(asking: &Asking) -> Result<()> {
    let members = members(asking).await?;
    asking.show(&members, |members| {
        let rows: Vec<Vec<String>> = members
            .iter()
            .map(|m| {
                let free = m.capacity.as_ref().map_or_else(String::new, |c| {
                    format!("{} of {}", mib(c.free_memory_bytes), mib(c.total_memory_bytes))
                });
                let kvm = m.capacity.as_ref().map_or("", |c| if c.kvm { "yes" } else { "no" });
                let vcpus = m.capacity.as_ref().map_or_else(String::new, |c| c.vcpus.to_string());
                vec![m.name.clone(), short(&m.node), m.alive.clone(), free, vcpus, kvm.into()]
            })
            .collect();
        table(&["NODE", "KEY", "ALIVE", "MEMORY FREE", "CPUS", "KVM"], &rows)
    })
}

async fn inspect(args: &InspectArgs) -> Result<()> {
    let members = members(&args.asking).await?;
    let is_meant =
        |m: &&Member| m.name == args.node || (args.node.len() >= 4 && m.node.starts_with(&args.node));
    let Some(member) = members.iter().find(is_meant) else {
        let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        bail!("there is no node {:?} in the network; there are {}", args.node, names.join(", "));
    };
    let vms = args.asking.daemon().await?.list_vms(ListVmsRequest {}).await.map_err(|s| plain(&s))?;
    let vms: Vec<_> = vms.into_inner().vms.into_iter().filter(|vm| vm.node == member.node).collect();
    let whole = serde_json::json!({ "node": member, "vms": vms });
    args.asking.show(&whole, |_| {
        let capacity = member.capacity.as_ref().map_or_else(
            || "nothing known of its capacity".to_owned(),
            |c| {
                let kvm = if c.kvm { "KVM" } else { "no KVM" };
                let (free, total) = (mib(c.free_memory_bytes), mib(c.total_memory_bytes));
                format!("{free} of {total} free, {} CPUs, {kvm}", c.vcpus)
            },
        );
        let votes = if member.leads {
            "leads the arbiter"
        } else if member.votes {
            "votes"
        } else {
            "does not vote"
        };
        let head = format!(
            "{} {}\n  {}\n  alive: {}; {votes}\n  {capacity}\n",
            member.name,
            member.node,
            member.addrs.join(" "),
            member.alive
        );
        head + &crate::vm::listed(&vms)
    })
}
