//! `containerd-shim-endophyte-v2`: containerd's door to endophyte. A container whose image holds something bootable runs
//! as a VM; the pod's network interface becomes the VM's.
//!
//! containerd starts it three ways: `start` answers with the address of a pod's shim, which it starts for the pod's first
//! container; without an action it serves that address; `delete` cleans up after a shim that is gone.

mod args;
mod bundle;
mod cgroup;
mod console;
mod delete;
mod events;
mod group;
mod image;
mod limits;
mod masquerade;
mod metrics;
mod net;
mod process;
mod rootfs;
mod rundir;
mod server;
mod service;
mod start;
mod task;
mod vm;

use std::process::ExitCode;

use args::{Action, Args};

fn main() -> ExitCode {
    let result = Args::parse(std::env::args_os().skip(1)).map_err(anyhow::Error::from).and_then(run);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what a shim writes here in the error of the call that started it.
            eprintln!("{}: {error:#}", env!("CARGO_BIN_NAME"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Start => start::run(&args),
        Action::Delete => delete::run(&args),
        Action::Serve => server::run(args),
        Action::Version => {
            println!("{} {}", env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}
