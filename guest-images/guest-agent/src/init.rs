//! What PID 1 does before it serves.

use crate::modules::{self, ModuleError};
use crate::network::{self, NetworkError};
use crate::options::{OptionError, Options};
use crate::{console, sys};
use std::path::Path;
use std::{fs, io};

/// The interface that gets the address.
const INTERFACE: &str = "eth0";

/// The kernel's file systems, in mounting order.
const MOUNTS: [(&str, &str); 3] = [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")];

/// The step of the start that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("step mount: cannot mount {kind} on {target}")]
    Mount { kind: &'static str, target: &'static str, source: io::Error },
    #[error("step console: cannot open /dev/console")]
    Console(#[source] io::Error),
    #[error("step command line: cannot read /proc/cmdline")]
    CommandLine(#[source] io::Error),
    #[error("step command line")]
    Options(#[source] OptionError),
    #[error("step modules")]
    Modules(#[source] ModuleError),
    #[error("step network")]
    Network(#[source] NetworkError),
}

/// Makes a machine out of a kernel and an initramfs.
pub(crate) fn prepare() -> Result<(), InitError> {
    MOUNTS.into_iter().try_for_each(|(kind, target)| mount(kind, target))?;
    console::attach().map_err(InitError::Console)?;
    let line = fs::read_to_string("/proc/cmdline").map_err(InitError::CommandLine)?;
    let options = Options::parse(&line).map_err(InitError::Options)?;
    modules::load_all(Path::new(modules::LIST)).map_err(InitError::Modules)?;
    network::loopback().map_err(InitError::Network)?;
    if let Some((address, prefix)) = options.ip {
        network::configure(INTERFACE, address, prefix).map_err(InitError::Network)?;
    }
    if let Some(gateway) = options.gateway {
        network::default_route(gateway).map_err(InitError::Network)?;
    }
    Ok(())
}

fn mount(kind: &'static str, target: &'static str) -> Result<(), InitError> {
    let failed = |source| InitError::Mount { kind, target, source };
    fs::create_dir_all(target).map_err(failed)?;
    match sys::mount(kind, target) {
        // Mounted already: a kernel with CONFIG_DEVTMPFS_MOUNT does so itself.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other.map_err(failed),
    }
}
