//! `mycelium vm`: VMs on the nodes of the network.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use endophyte_api::ConsoleInput;
use mycelium_api::{
    FailoverVmRequest, ListVmsRequest, ProtectVmRequest, RemoveVmRequest, RunVmRequest, StopVmRequest, Vm,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::output::{Asking, block_on, plain, say, table};

/// What can be done with VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Start a VM on this node.
    Run(RunArgs),
    /// List the network's VMs, replicas included.
    List(#[command(flatten)] Asking),
    /// Show one VM: where it runs, where its replica is, and why there.
    Inspect(NameArgs),
    /// Keep a replica of a VM of this node on another one, or give it up (--off).
    Protect(ProtectArgs),
    /// Kill a VM's process on this node, so that its replica takes over. Nothing acknowledged is lost.
    Failover(NameArgs),
    /// End a VM of this node for good, its replica too.
    Stop(NameArgs),
    /// Forget a VM that has ended.
    Rm(NameArgs),
    /// Print what a VM of this node has written to its console.
    Logs(LogsArgs),
    /// Sit at the console of a VM of this node; Ctrl-] leaves.
    Console(NameArgs),
    /// Print what has happened to a VM on this node, one JSON object a line.
    Events(LogsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    #[command(flatten)]
    asking: Asking,
    /// The VM's name.
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    asking: Asking,
    /// VM spec file (TOML). Kernel, initrd and taps must be there under the same names on every node that may run it.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Keep a replica on another node.
    #[arg(long)]
    protect: bool,
    /// When there is no replica: run on unprotected, or stop until there is one.
    #[arg(long, value_name = "POLICY", default_value = "degrade")]
    on_loss: OnLoss,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnLoss {
    Degrade,
    Halt,
}

#[derive(Debug, Args)]
pub(crate) struct ProtectArgs {
    #[command(flatten)]
    asking: Asking,
    /// The VM's name.
    name: String,
    /// Give the replica up.
    #[arg(long)]
    off: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    asking: Asking,
    /// The VM's name.
    name: String,
    /// Go on as more comes.
    #[arg(long, short)]
    follow: bool,
}

pub(crate) fn run(command: VmCommand) -> Result<()> {
    block_on(async {
        match command {
            VmCommand::Run(args) => start(&args).await,
            VmCommand::List(asking) => {
                let vms = list(&asking).await?;
                asking.show(&vms, |vms| listed(vms))
            }
            VmCommand::Inspect(args) => inspect(&args).await,
            VmCommand::Protect(ProtectArgs { asking, name, off }) => {
                let ask = ProtectVmRequest { name, protect: !off };
                let vm = asking.daemon().await?.protect_vm(ask).await.map_err(|s| plain(&s))?;
                asking.show(&vm.into_inner(), describe)
            }
            VmCommand::Failover(NameArgs { asking, name }) => {
                let ask = FailoverVmRequest { name: name.clone() };
                let reply = asking.daemon().await?.failover_vm(ask).await.map_err(|s| plain(&s))?;
                asking.show(&reply.into_inner(), |r| format!("{name} goes on on {}", r.node_name))
            }
            VmCommand::Stop(NameArgs { asking, name }) => {
                let vm =
                    asking.daemon().await?.stop_vm(StopVmRequest { name }).await.map_err(|s| plain(&s))?;
                asking.show(&vm.into_inner(), describe)
            }
            VmCommand::Rm(NameArgs { asking, name }) => {
                let ask = RemoveVmRequest { name: name.clone() };
                asking.daemon().await?.remove_vm(ask).await.map_err(|s| plain(&s))?;
                asking.show(&serde_json::json!({ "removed": name }), |_| format!("{name} is forgotten"))
            }
            VmCommand::Logs(args) => print_file(&args, "serial.log").await,
            VmCommand::Events(args) => print_file(&args, "events.jsonl").await,
            VmCommand::Console(args) => console(&args).await,
        }
    })
}

async fn start(args: &RunArgs) -> Result<()> {
    let on_loss = match args.on_loss {
        OnLoss::Degrade => "degrade",
        OnLoss::Halt => "halt",
    };
    let ask =
        RunVmRequest { spec: whole_paths(&args.spec)?, protect: args.protect, on_loss: on_loss.to_owned() };
    let vm = args.asking.daemon().await?.run_vm(ask).await.map_err(|s| plain(&s))?;
    args.asking.show(&vm.into_inner(), describe)
}

/// The spec with its relative paths made whole: the daemon is elsewhere.
fn whole_paths(path: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the spec {}", path.display()))?;
    let mut spec: toml::Table =
        text.parse().with_context(|| format!("the spec {} is not TOML", path.display()))?;
    let base = std::path::absolute(path)?;
    let base = base.parent().unwrap_or(Path::new("/"));
    for field in ["kernel", "initrd"] {
        if let Some(toml::Value::String(file)) = spec.get_mut(field) {
            *file = base.join(&file).display().to_string();
        }
    }
    Ok(toml::to_string(&spec)?)
}

async fn list(asking: &Asking) -> Result<Vec<Vm>> {
    let vms = asking.daemon().await?.list_vms(ListVmsRequest {}).await.map_err(|s| plain(&s))?;
    Ok(vms.into_inner().vms)
}

/// A table of VMs.
pub(crate) fn listed(vms: &[Vm]) -> String {
    let rows: Vec<Vec<String>> = vms
        .iter()
        .map(|vm| {
            let replica = if vm.role == "active" { vm.replica_node_name.clone() } else { String::new() };
            let generation = if vm.generation == 0 { String::new() } else { vm.generation.to_string() };
            vec![
                vm.name.clone(),
                vm.node_name.clone(),
                vm.role.clone(),
                vm.state.clone(),
                replica,
                generation,
            ]
        })
        .collect();
    if rows.is_empty() {
        "no VMs".to_owned()
    } else {
        table(&["VM", "NODE", "ROLE", "STATE", "REPLICA", "GEN"], &rows)
    }
}

fn describe(vm: &Vm) -> String {
    let mut text = format!("{} on {}: {}", vm.name, vm.node_name, vm.role);
    if vm.state != vm.role {
        text += &format!(", {}", vm.state);
    }
    if !vm.reason.is_empty() {
        text += &format!(" ({})", vm.reason);
    }
    if vm.wanted_protection && vm.role == "active" {
        text += &match (vm.replica_node_name.as_str(), vm.placement.as_str()) {
            ("", "") => "\n  replica: a place is being looked for".to_owned(),
            ("", why) => format!("\n  replica: nowhere yet: {why}"),
            (node, why) => format!("\n  replica: {node}: {why}"),
        };
    }
    if !vm.trouble.is_empty() {
        text += &format!("\n  last trouble: {}", vm.trouble);
    }
    text
}

async fn inspect(args: &NameArgs) -> Result<()> {
    let vms: Vec<Vm> = list(&args.asking).await?.into_iter().filter(|vm| vm.name == args.name).collect();
    if vms.is_empty() {
        bail!("there is no VM {} in the network; `mycelium vm list` shows what there is", args.name);
    }
    args.asking.show(&vms, |vms| vms.iter().map(describe).collect::<Vec<_>>().join("\n"))
}

/// The VM as this node has it; its files and sockets are on its own node.
async fn here(asking: &Asking, name: &str) -> Result<Vm> {
    let vms = list(asking).await?;
    let named: Vec<&Vm> = vms.iter().filter(|vm| vm.name == name).collect();
    if let Some(vm) = named.iter().find(|vm| !vm.folder.is_empty()) {
        return Ok((*vm).clone());
    }
    match named.first() {
        Some(vm) => bail!("VM {name} is on node {}; run this command there", vm.node_name),
        None => bail!("there is no VM {name} in the network; `mycelium vm list` shows what there is"),
    }
}

/// Copies a file of the VM's run folder to standard output, and what is added to it if asked.
async fn print_file(args: &LogsArgs, file: &str) -> Result<()> {
    let vm = here(&args.asking, &args.name).await?;
    let path = Path::new(&vm.folder).join("run").join(file);
    let mut file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 if !args.follow => return Ok(()),
            0 => tokio::time::sleep(Duration::from_millis(100)).await,
            n => {
                if std::io::stdout().lock().write_all(&chunk[..n]).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Ctrl-], as telnet has it.
const LEAVE: u8 = 0x1d;

async fn console(args: &NameArgs) -> Result<()> {
    let vm = here(&args.asking, &args.name).await?;
    let mut client =
        endophyte_api::connect(&vm.api).await.with_context(|| format!("VM {} does not answer", vm.name))?;
    let (typed, input) = tokio::sync::mpsc::channel(16);
    typed.send(ConsoleInput { from_offset: Some(0), bytes: Vec::new() }).await?;
    let _raw = RawTerminal::enter();
    std::thread::spawn(move || type_in(&typed));
    let output = client.console(ReceiverStream::new(input)).await.map_err(|s| plain(&s))?;
    let mut output = output.into_inner();
    while let Some(said) = output.message().await.map_err(|s| plain(&s))? {
        let mut out = std::io::stdout().lock();
        if out.write_all(&said.bytes).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

/// Passes keys on until the leaving one or the end of input; then the console's input ends, and with it the call.
fn type_in(typed: &tokio::sync::mpsc::Sender<ConsoleInput>) {
    let mut chunk = [0; 256];
    while let Ok(n @ 1..) = std::io::stdin().read(&mut chunk) {
        let keys = &chunk[..n];
        let until = keys.iter().position(|key| *key == LEAVE).unwrap_or(n);
        let input = ConsoleInput { from_offset: None, bytes: keys[..until].to_vec() };
        if typed.blocking_send(input).is_err() || until < n {
            break;
        }
    }
    RawTerminal::leave();
    std::process::exit(0);
}

/// The terminal without its own line editing; put back when dropped.
struct RawTerminal;

static COOKED: std::sync::Mutex<Option<rustix::termios::Termios>> = std::sync::Mutex::new(None);

impl RawTerminal {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        if let Ok(cooked) = rustix::termios::tcgetattr(&stdin) {
            let mut raw = cooked.clone();
            raw.make_raw();
            let _ = rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &raw);
            *COOKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(cooked);
        }
        say("sitting at the console; Ctrl-] leaves\r");
        Self
    }

    fn leave() {
        if let Some(cooked) = COOKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            let now = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(std::io::stdin(), now, &cooked);
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        Self::leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_of_a_spec_are_made_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.toml");
        std::fs::write(&path, "name = \"a\"\nkernel = \"k\"\ninitrd = \"/abs\"\n").unwrap();
        let spec: toml::Table = whole_paths(&path).unwrap().parse().unwrap();
        assert_eq!(spec["kernel"].as_str(), dir.path().join("k").to_str());
        assert_eq!(spec["initrd"].as_str(), Some("/abs"));
    }
}
