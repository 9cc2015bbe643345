//! First process of a lab host: sets the host up as its boot plan says, then carries out orders.

mod boot;
mod files;
mod kvm;
mod netdev;
mod netlink;
mod orders;
mod outbox;
mod ping;
mod processes;

use std::process::{Command, ExitCode};

use rustix::process::{Pid, WaitOptions};
use rustix::system::RebootCommand;

/// Tells the second incarnation of this binary that it is the agent and not the init.
const AGENT_ARGUMENT: &str = "--agent";

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == AGENT_ARGUMENT) {
        return run_agent();
    }
    if std::process::id() != 1 {
        eprintln!(
            "lab-agent is the init of a lab host and runs only as its first process; start hosts with `lab up`"
        );
        return ExitCode::from(2);
    }
    reap_until_agent_ends();
    power_off();
    ExitCode::SUCCESS
}

fn run_agent() -> ExitCode {
    match boot::boot().and_then(orders::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprintln!("lab-agent: {refusal}");
            ExitCode::FAILURE
        }
    }
}

/// Being the first process means inheriting every orphan; a process that waits for "any child" cannot also wait for its
/// own ones, so the agent proper is a child.
fn reap_until_agent_ends() {
    if let Err(error) = boot::mount_filesystems() {
        eprintln!("lab-agent: {error}");
        return;
    }
    let agent = match Command::new("/init").arg(AGENT_ARGUMENT).spawn() {
        Ok(child) => Pid::from_child(&child),
        Err(error) => {
            eprintln!("lab-agent: cannot start /init {AGENT_ARGUMENT}: {error}");
            return;
        }
    };
    while let Ok(reaped) = rustix::process::wait(WaitOptions::empty()) {
        if reaped.is_some_and(|(pid, _)| pid == agent) {
            return;
        }
    }
}

fn power_off() {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        eprintln!("lab-agent: cannot power off: {error}");
    }
}
