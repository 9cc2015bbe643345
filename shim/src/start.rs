//! `start`: containerd asks for the shim of a container. Containers of a pod share the pod's.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::bundle::{Config, Role};
use crate::rundir::short_name;

const SOCKETS: &str = "/run/containerd/s";

/// The socket of the shim that was started for a container: by name, so that every call finds the same.
pub(crate) fn socket_path(namespace: &str, containerd: &str, id: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("endophyte-{}", short_name(namespace, containerd, id)))
}

/// Prints the address of the container's shim, which runs when this returns.
pub(crate) fn run(args: &Args) -> Result<()> {
    let config = Config::load(&std::env::current_dir()?)?;
    let socket = match &config.role {
        Role::Member { sandbox } => {
            let socket = socket_path(&args.namespace, &args.address, sandbox);
            if UnixStream::connect(&socket).is_err() {
                bail!("the shim of pod sandbox {sandbox} is gone; the pod has to be made anew");
            }
            socket
        }
        Role::Sandbox | Role::Alone => {
            let socket = socket_path(&args.namespace, &args.address, &args.id);
            serve(args, &socket)?;
            socket
        }
    };
    let address = format!("unix://{}", socket.display());
    fs::write("address", &address).context("cannot write the bundle's address file")?;
    // The bare address is the one form that every containerd since 1.6 takes.
    write!(std::io::stdout(), "{address}")?;
    Ok(())
}

/// Starts the shim's own process, with its socket listening already.
fn serve(args: &Args, socket: &Path) -> Result<()> {
    if UnixStream::connect(socket).is_ok() {
        return Ok(());
    }
    fs::create_dir_all(SOCKETS).with_context(|| format!("cannot make {SOCKETS}"))?;
    let _ = fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let mut shim = Command::new(std::env::current_exe()?);
    shim.args(["-namespace", &args.namespace, "-address", &args.address, "-id", &args.id]);
    if args.debug {
        shim.arg("-debug");
    }
    let log = log().map_or_else(Stdio::null, Stdio::from);
    shim.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(log).process_group(0);
    shim.spawn().context("cannot start the shim's own process")?;
    Ok(())
}

/// containerd reads the log from a FIFO in the bundle. Opened both ways: its end must survive a restart of containerd; and
/// without waiting: a log nobody reads must not hold the shim up.
fn log() -> Option<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open("log").ok()
}
