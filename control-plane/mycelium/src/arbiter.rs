//! `mycelium arbiter`: the arbiter on one machine.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use mycelium_arbiter::client::Client;
use mycelium_arbiter::server::Server;
use mycelium_arbiter::store::Store;
use mycelium_ram_core::VmId;
use mycelium_ram_core::record::Record;
use mycelium_ram_core::settle::Request;
use rhizomorph_link::{AllowList, Identity, PeerKey, Ticket};

/// What can be done with an arbiter.
#[derive(Debug, Subcommand)]
pub(crate) enum ArbiterCommand {
    /// Run an arbiter: it must outlive the nodes it judges, so give it a machine of its own where you can.
    Run(RunArgs),
    /// Show the record of a VM.
    Show {
        /// The arbiter: KEY@ADDRESS.
        #[arg(long, value_name = "TICKET")]
        arbiter: Ticket,
        /// A key the arbiter allows.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The VM's name.
        vm: VmId,
        /// One JSON object instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Remove the record of a VM that runs nowhere any more. The arbiter of this folder must not be running.
    Forget {
        /// The arbiter's folder.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The VM's name.
        vm: VmId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Address to listen on.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The arbiter's private key (`endophyte keygen`).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Folder for the records.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Public key of a node that may ask; may be given several times.
    #[arg(long, value_name = "KEY", required = true)]
    allow: Vec<PeerKey>,
}

pub(crate) fn run(command: ArbiterCommand) -> Result<()> {
    match command {
        ArbiterCommand::Run(args) => serve(&args),
        ArbiterCommand::Show { arbiter, key, vm, json } => show(&arbiter, &Identity::load(&key)?, &vm, json),
        ArbiterCommand::Forget { dir, vm } => match Store::open(&dir)?.forget(&vm)? {
            Some(record) => {
                println!("forgot {vm}: {}", describe(&record));
                Ok(())
            }
            None => bail!("there is no record of VM {vm} in {}", dir.display()),
        },
    }
}

fn serve(args: &RunArgs) -> Result<()> {
    let identity = Identity::load(&args.key)?;
    let store = Store::open(&args.dir)?;
    let allow = AllowList::only(args.allow.iter().copied());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let server = Server::bind(&identity, allow, args.listen, store)?;
        println!("the arbiter listens as {}@{}", identity.peer_key(), server.local_addr()?);
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            () = server.serve() => {}
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(())
    })
}

fn show(arbiter: &Ticket, identity: &Identity, vm: &VmId, json: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reply = runtime.block_on(async {
        let client = Client::new(identity, std::slice::from_ref(arbiter), vm.clone())?;
        client.ask(Request::Read).await.context("the arbiter could not be asked")
    })?;
    let Some(record) = reply.record() else { bail!("the arbiter has no record of VM {vm}") };
    if json {
        println!("{}", serde_json::to_string(record)?);
    } else {
        println!("{}", describe(record));
    }
    Ok(())
}

fn describe(record: &Record) -> String {
    let in_sync: Vec<String> =
        record.in_sync.iter().map(|l| format!("{} since {}", l.member, l.since)).collect();
    format!(
        "generation {} on {}, in sync: {}, on loss: {}",
        record.generation.0,
        record.active,
        if in_sync.is_empty() { "nobody".to_owned() } else { in_sync.join(", ") },
        serde_json::to_value(record.policy)
            .ok()
            .and_then(|p| p.as_str().map(str::to_owned))
            .unwrap_or_default()
    )
}
