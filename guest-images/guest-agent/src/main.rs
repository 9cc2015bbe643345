//! The guest agent: the whole userland of a stock Linux guest.
//!
//! As PID 1 of an initramfs it mounts the kernel's file systems, loads the modules of `/modules.list`, gives `eth0`
//! the address of the kernel command line, and serves RESP on port 6379; every 100 ms it prints a tick line. If a
//! step fails it names the step and powers off, since a half-started guest looks like a hung one from outside.
//!
//! Started as an ordinary process it only serves: `guest-agent [ADDRESS:PORT]`.

mod clocks;
mod console;
mod init;
mod limits;
mod machine;
mod modules;
mod network;
mod options;
mod serve;
mod sys;

use clocks::Sampler;
use machine::{Machine, Role};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;

/// Exit code of a server that could not start.
const EXIT_FAILED: u8 = 1;

/// Address served where none is given.
const DEFAULT_ADDRESS: &str = "0.0.0.0:6379";

fn main() -> ExitCode {
    let role = if std::process::id() == 1 { Role::Init } else { Role::Process };
    let outcome = match role {
        Role::Init => init::prepare().map_err(chain_text).and_then(|()| serve(role, DEFAULT_ADDRESS)),
        Role::Process => {
            let address = std::env::args().nth(1);
            serve(role, address.as_deref().unwrap_or(DEFAULT_ADDRESS))
        }
    };
    let Err(reason) = outcome else { return ExitCode::SUCCESS };
    eprintln!("guest-agent: {reason}");
    if role == Role::Init {
        // PID 1 must not return, or the kernel panics and hides the reason above.
        let error = sys::reboot(sys::Reboot::PowerOff);
        eprintln!("guest-agent: cannot power off either: {error}");
    }
    ExitCode::from(EXIT_FAILED)
}

/// The chain of an error in one line.
fn chain_text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Starts the clocks and serves for ever.
fn serve(role: Role, address: &str) -> Result<(), String> {
    let sampler = Arc::new(Sampler::default());
    clocks::start(&sampler).map_err(|error| format!("cannot start the clock threads: {error}"))?;
    let listener =
        TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let bound =
        listener.local_addr().map_err(|error| format!("cannot tell the address of {address}: {error}"))?;
    println!("guest-agent: ready address={bound}");
    serve::run(listener, Machine::new(role, sampler)).map_err(|error| format!("serving {bound}: {error}"))
}
