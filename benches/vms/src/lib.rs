//! What benches share: guests on our VMM and on QEMU behind one trait, the network to them, a client of theirs. What a figure
//! measures does not know whose the VMM is.

mod console;
mod family;
pub mod limits;
mod ours;
pub mod pair;
pub mod process;
pub mod programs;
mod qemu;
mod qemu_colo;
mod qemu_move;
mod qmp;
pub mod resp;
mod running;
pub mod smaps;
mod stop;
pub mod timeline;
pub mod wire;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

pub use ours::Endophyte;
pub use pair::{Pair, Programs, Protect};
pub use qemu::{Flavour, PROGRAM as QEMU_PROGRAM, Qemu, name as qemu_name, version as qemu_version};
pub use qemu_colo::{Colo, Twins};
pub use qemu_move::{Move, Moved};
pub use running::Running;
pub use stop::Stop;
pub use wire::Wire;

/// A machine for the native guest: one processor, a serial console on standard output, and what is asked for here.
#[derive(Clone, Debug, Default)]
pub struct Setup<'a> {
    /// Guest RAM, MiB.
    pub ram_mib: u32,
    /// The guest's command line, without its network's words.
    pub words: String,
    /// A network card on this tap.
    pub wire: Option<&'a Wire>,
    /// A disk past the host's page cache, one queue.
    pub disk: Option<PathBuf>,
    /// The folder it can be saved to, by order of a socket.
    pub saves_to: Option<&'a Path>,
    /// Guest RAM must be told from the process' other memory.
    pub named_ram: bool,
}

impl Setup<'_> {
    /// The guest's whole command line.
    pub fn cmdline(&self) -> String {
        let net = self.wire.map_or_else(String::new, Wire::guest_words);
        format!("{net} {}", self.words).trim().to_owned()
    }

    /// Whether the machine needs a PCI bus.
    pub fn has_devices(&self) -> bool {
        self.wire.is_some() || self.disk.is_some()
    }
}

/// What a guest begins with.
#[derive(Clone, Copy, Debug)]
pub enum Begin<'a> {
    /// Its kernel's first instruction.
    Boot,
    /// Where it was saved to this file.
    Restore(&'a Path),
}

/// A command line ready to be started.
#[derive(Debug)]
pub struct Prepared {
    /// The command.
    pub command: Command,
    /// Files the process inherits by number.
    pub inherited: Vec<File>,
}

/// One way to run the guest.
pub trait Vmm: std::fmt::Debug {
    /// As figures name it.
    fn name(&self) -> &str;

    /// Name of the memfd that is guest RAM, for a setup with `named_ram`.
    fn ram_memfd(&self) -> &'static str;

    /// Writes what the process will read, into `folder`, which is its own.
    fn prepare(&self, setup: &Setup<'_>, begin: Begin<'_>, folder: &Path) -> Result<Prepared>;

    /// Saves a running guest to `file` and ends it. Its setup had `saves_to`.
    fn save(&self, running: Running, file: &Path, stop: &Stop) -> Result<()>;
}
