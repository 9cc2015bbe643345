//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use endophyte_sandbox::User;
use mycelium_ram_core::mode::{Lease, Mode};
use mycelium_ram_core::record::LossPolicy;
use rhizomorph_link::{PeerKey, Ticket};

/// A virtual machine monitor whose VMs survive the loss of their host.
///
/// A protected VM is one `active` process, one `passive` process on another node, and an arbiter (`mycelium arbiter`)
/// that decides who runs it. docs/two-machines.md goes through it line by line.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 ended well, 1 unexpected, 2 usage, 3 spec or key, 4 this host, 5 the guest failed, 6 deposed by a takeover, 7 arbiter or peer, 8 stopped by the sandbox."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a VM without protection.
    Run(RunArgs),
    /// Run a VM and keep replicas of it.
    Active(ActiveArgs),
    /// Hold a replica of a VM, and run it when its host is lost.
    Passive(PassiveArgs),
    /// Make this node's key; prints the public key that other nodes need.
    Keygen {
        /// File for the private key; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public key of a key file.
    Key {
        /// The private key's file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Explain what this host offers a VM.
    Doctor {
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Show how a VM of this host is doing, from its run folder or from its process.
    #[command(group = clap::ArgGroup::new("source").required(true))]
    Status {
        /// The VM's run folder.
        #[arg(long, value_name = "DIR", group = "source")]
        run_dir: Option<PathBuf>,
        /// The socket of the VM's API.
        #[arg(long, value_name = "SOCKET", group = "source")]
        api: Option<PathBuf>,
        /// One JSON object instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Of a process that holds a VM.
    pub(crate) fn process(&self) -> Option<&ProcessArgs> {
        match self {
            Self::Run(args) => Some(&args.process),
            Self::Active(args) => Some(&args.node.process),
            Self::Passive(args) => Some(&args.node.process),
            _ => None,
        }
    }
}

/// What every process that holds a VM may be given.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ProcessArgs {
    /// Serve the runtime API (gRPC, endophyte.v1) on this Unix socket, for this user only; a dead process' socket is
    /// replaced.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) api: Option<PathBuf>,
    /// Be killed when the thread that started this process ends.
    #[arg(long)]
    pub(crate) die_with_parent: bool,
    /// Run the VM without the sandbox that keeps a guest which breaks out from the rest of the host.
    #[arg(long, conflicts_with = "user")]
    pub(crate) no_sandbox: bool,
    /// A folder in which the API may write snapshots and find disks; may be given several times. What is elsewhere is out of
    /// the sandbox's reach.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) reach: Vec<PathBuf>,
    /// Become this user once the devices of the host are open; the VM's files must be within its reach.
    #[arg(long, value_name = "NAME|UID[:GID]")]
    pub(crate) user: Option<User>,
    /// Move into this control group, made if there is none.
    #[arg(long, value_name = "FOLDER", conflicts_with = "no_sandbox")]
    pub(crate) cgroup: Option<PathBuf>,
    /// Bound the control group's memory to the guest's RAM and an allowance, and its threads.
    #[arg(long, requires = "cgroup")]
    pub(crate) cgroup_limits: bool,
    /// Write forbidden system calls to the kernel's log and let them pass.
    #[arg(long, hide = true, conflicts_with = "no_sandbox")]
    pub(crate) sandbox_report: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// VM spec file (TOML).
    #[arg(long, value_name = "FILE", required_unless_present = "wait")]
    pub(crate) spec: Option<PathBuf>,
    /// Wait until the API says what machine to make (Create) and lets it begin (Boot).
    #[arg(long, requires = "api", conflicts_with_all = ["spec", "restore", "incoming"])]
    pub(crate) wait: bool,
    /// Have the machine stand before its first instruction until the API lets it begin (Boot).
    #[arg(long, requires = "api", conflicts_with_all = ["wait", "incoming"])]
    pub(crate) hold: bool,
    /// Go on where a snapshot was taken instead of booting. The spec must describe the same machine, its disks must be as
    /// they were. The guest runs at once; its memory comes as it is touched.
    #[arg(long, value_name = "FILE")]
    pub(crate) restore: Option<PathBuf>,
    /// Read the whole snapshot before the guest runs.
    #[arg(long, requires = "restore")]
    pub(crate) whole: bool,
    /// Folder for serial.log: what the guest writes to its console, from its first byte.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Wait at this address, one or several with commas, for a VM that is migrated here instead of booting. The spec must
    /// describe the same machine, its disks must be the same shared files.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', conflicts_with = "restore")]
    pub(crate) incoming: Vec<SocketAddr>,
    /// Public key of a process that may migrate its VM here; may be given several times. With --api, SetAllowed replaces
    /// these.
    #[arg(long, value_name = "KEY", requires = "incoming")]
    pub(crate) allow: Vec<PeerKey>,
    /// Let the API attach network cards by the names of taps (AttachNet): the sandbox then leaves /dev/net/tun and the taps of
    /// this network namespace within reach. Without it, only inherited taps (`fd:N`) can be attached.
    #[arg(long)]
    pub(crate) attach_taps: bool,
    /// This node's private key (`endophyte keygen`), for migrations. Without one, a key is made for this process.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// What both roles of a protected VM need.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// VM spec file (TOML); name, RAM, vCPUs, kernel, command line and MACs must be the same on every node.
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: PathBuf,
    /// This node's private key (`endophyte keygen`).
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// The arbiter: KEY@ADDRESS; give it once per arbiter that keeps the record.
    #[arg(long, value_name = "TICKET", required = true)]
    pub(crate) arbiter: Vec<Ticket>,
    /// Folder for the timeline (events.jsonl), status.json, metrics.prom and serial.log.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// Largest UDP payload of the replication paths: 1452 works everywhere, 8952 where the MTU is 9000 all the way.
    #[arg(long, value_name = "BYTES", default_value_t = 1452, value_parser = clap::value_parser!(u16).range(1200..=16000))]
    pub(crate) mtu: u16,
    /// Memory for what replicas have been sent: of its pages only what changes is sent, and those that change all the time
    /// cost the guest no fault. With 0, pages are sent whole and watched anew after each epoch.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub(crate) shadow_mib: u32,
    /// For rehearsals of losses: once a file `drill` lies in the run folder, hold one epoch in this phase (ending, paused, sending,
    /// acked or releasing) for 200 ms, and say so in the timeline.
    #[arg(long, value_name = "PHASE", hide_short_help = true)]
    pub(crate) drill: Option<mycelium_ram::drill::Phase>,
    #[command(flatten)]
    pub(crate) timing: TimingArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Commit a deliberate protocol fault (test builds only).
    #[cfg(feature = "sabotage")]
    #[arg(long, value_name = "NAME")]
    pub(crate) sabotage: Option<mycelium_ram_core::sabotage::Sabotage>,
}

impl NodeArgs {
    /// Pages of 4 KiB that fit what is kept for replicas.
    pub(crate) fn shadow_pages(&self) -> usize {
        self.shadow_mib as usize * 256
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct TimingArgs {
    /// Longest epoch.
    #[arg(long, value_name = "MS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) epoch_ms: u64,
    /// Shortest epoch, when output waits; beyond that, --cut-share decides.
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub(crate) epoch_min_ms: u64,
    /// Share of a busy guest's time that may be spent on ending epochs because output waits. More shortens the wait, less gives
    /// the guest more of its processor; a guest that is not busy loses nothing either way.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) cut_share: u32,
    /// Interval of heartbeats.
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) heartbeat_ms: u64,
    /// Silence of the active below this is never suspect; the limit adapts upwards to the jitter seen. Keep it above
    /// the paths' round trip time.
    #[arg(long, value_name = "MS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=60_000))]
    pub(crate) detect_ms: u64,
}

impl TimingArgs {
    pub(crate) fn heartbeat(self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    pub(crate) fn detect(self) -> Duration {
        Duration::from_millis(self.detect_ms)
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ActiveArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// A passive process that is to hold a replica: KEY@ADDRESS,ADDRESS; every address is a path of its own. Without one the
    /// VM runs unprotected until the API's SetReplicas names some.
    #[arg(long, value_name = "TICKET")]
    pub(crate) replica: Vec<Ticket>,
    /// When a replica is lost: run on unprotected once the arbiter has recorded it, or stop until one is back.
    #[arg(long, value_name = "POLICY", default_value = "degrade", value_parser = parse_policy)]
    pub(crate) on_loss: LossPolicy,
    /// sync: output waits until replicas hold what caused it. async: it leaves at once, and a takeover may lose up to a second of the
    /// guest's time; `mycelium vm policy` changes it, and how much, while the VM runs.
    #[arg(long, value_name = "MODE", default_value = "sync", value_parser = parse_mode)]
    pub(crate) mode: Mode,
}

fn parse_mode(word: &str) -> Result<Mode, String> {
    match word {
        "sync" => Ok(Mode::Sync),
        "async" => Ok(Mode::Async(Lease::DEFAULT)),
        other => Err(format!("{other:?}: there are sync and async")),
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PassiveArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Address to listen on for the active; give it once per path.
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub(crate) listen: Vec<SocketAddr>,
    /// Public key of a node that may be the active; may be given several times. With --api, SetAllowed replaces these.
    #[arg(long, value_name = "KEY", required_unless_present = "api")]
    pub(crate) allow: Vec<PeerKey>,
    /// After a takeover, keep a replica there. With --api, SetReplicas replaces these.
    #[arg(long, value_name = "TICKET")]
    pub(crate) replica: Vec<Ticket>,
    /// End when no active has connected for this long; 0 waits for ever. A replica that the arbiter lists never ends by
    /// this.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=31_536_000))]
    pub(crate) orphan_after: u64,
}

fn parse_policy(text: &str) -> Result<LossPolicy, String> {
    match text {
        "degrade" => Ok(LossPolicy::Degrade),
        "halt" => Ok(LossPolicy::Halt),
        other => Err(format!("{other:?} is no policy; there are degrade and halt")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
