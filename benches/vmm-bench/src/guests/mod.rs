//! The VMMs behind one trait: what a figure measures does not know whose it is.

mod ours;
mod qemu;
mod qmp;
mod running;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

pub(crate) use ours::Endophyte;
pub(crate) use qemu::{Flavour, PROGRAM as QEMU_PROGRAM, Qemu, name as qemu_name, version as qemu_version};
pub(crate) use running::Running;

use crate::stop::Stop;
use crate::wire::Wire;

/// A machine for the native guest: one processor, a serial console on standard output, and what is asked for here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup<'a> {
    pub(crate) ram_mib: u32,
    /// The guest's command line, without its network's words.
    pub(crate) words: String,
    /// A network card on this tap.
    pub(crate) wire: Option<&'a Wire>,
    /// A disk past the host's page cache, one queue.
    pub(crate) disk: Option<PathBuf>,
    /// The folder it can be saved to, by order of a socket.
    pub(crate) saves_to: Option<&'a Path>,
    /// Guest RAM must be told from the process' other memory.
    pub(crate) named_ram: bool,
}

impl Setup<'_> {
    /// The guest's whole command line.
    pub(crate) fn cmdline(&self) -> String {
        let net = self.wire.map_or_else(String::new, Wire::guest_words);
        format!("{net} {}", self.words).trim().to_owned()
    }

    /// Whether the machine needs a PCI bus.
    pub(crate) fn has_devices(&self) -> bool {
        self.wire.is_some() || self.disk.is_some()
    }
}

/// What a guest begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin<'a> {
    /// Its kernel's first instruction.
    Boot,
    /// Where it was saved to this file.
    Restore(&'a Path),
}

/// A command line ready to be started.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) command: Command,
    /// Files the process inherits by number.
    pub(crate) inherited: Vec<File>,
}

/// One way to run the guest.
pub(crate) trait Vmm {
    /// As figures name it.
    fn name(&self) -> &str;

    /// Name of the memfd that is guest RAM, for a setup with `named_ram`.
    fn ram_memfd(&self) -> &'static str;

    /// Writes what the process will read, into `folder`, which is its own.
    fn prepare(&self, setup: &Setup<'_>, begin: Begin<'_>, folder: &Path) -> Result<Prepared>;

    /// Saves a running guest to `file` and ends it. Its setup had `saves_to`.
    fn save(&self, running: Running, file: &Path, stop: &Stop) -> Result<()>;
}
