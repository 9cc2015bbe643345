//! A machine of one's own: the calling thread gets a network, mounts and a `/run` that nobody else sees.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use mycelium_lab::net::PrivateNamespace;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

/// Moves the calling thread into the machine. Whatever it starts from now on is in it; all vanishes with the last of them.
///
/// # Errors
/// Without the right to do so.
pub fn enter() -> Result<()> {
    // SAFETY: leaving the mount namespace invalidates no memory and no descriptor.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.context("run the tests as root")?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).context("cannot mount a /run of our own")?;
    PrivateNamespace::enter()?;
    Ok(())
}

/// Runs a program to its end and returns what it said.
///
/// # Errors
/// When it cannot be started or fails; with its own words.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = output(Command::new(program).args(args))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed ({}): {}", args.join(" "), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))
}

/// Runs a program in another network namespace.
///
/// # Errors
/// As [`run`].
pub fn run_in(netns: &Path, program: &str, args: &[&str]) -> Result<String> {
    let netns = format!("--net={}", netns.display());
    run("nsenter", &[&[netns.as_str(), "--", program], args].concat())
}
