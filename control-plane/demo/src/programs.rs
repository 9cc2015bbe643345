//! Finding the programs the demo plays with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::options::{DemoOptions, GuestKind};

/// Their files.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) mycelium: PathBuf,
    pub(crate) endophyte: PathBuf,
    pub(crate) native_guest: PathBuf,
    pub(crate) guest_agent: PathBuf,
    pub(crate) lab_agent: PathBuf,
}

impl Programs {
    /// Takes each from its option, or from beside this program.
    pub(crate) fn find(options: &DemoOptions) -> Result<Self> {
        let mycelium = std::env::current_exe().context("cannot tell where this program is")?;
        let beside = mycelium.parent().unwrap_or(Path::new("."));
        let choose = |given: &Option<PathBuf>, name: &str| given.clone().unwrap_or_else(|| beside.join(name));
        let programs = Self {
            endophyte: choose(&options.endophyte, "endophyte"),
            native_guest: choose(&options.native_guest, "native-guest"),
            guest_agent: choose(&options.guest_agent, "guest-agent"),
            lab_agent: choose(&options.lab_agent, "lab-agent"),
            mycelium,
        };
        let needed = match options.guest {
            GuestKind::Native => vec![&programs.endophyte, &programs.native_guest],
            GuestKind::Linux => vec![&programs.endophyte, &programs.guest_agent, &programs.lab_agent],
        };
        for file in needed {
            if !file.is_file() {
                bail!(
                    "{} is missing; `cargo xtask demo` builds it, or name it with an option",
                    file.display()
                );
            }
        }
        Ok(programs)
    }
}
