//! The keys of a demo, and its arbiter, which runs outside both nodes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rhizomorph_link::{Identity, PeerKey};

use crate::programs::Programs;

/// Key files in a folder, `arbiter.key` and one per node, and their public halves.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) dir: PathBuf,
    pub(crate) arbiter: PeerKey,
    pub(crate) nodes: Vec<PeerKey>,
}

impl Keys {
    pub(crate) fn make(dir: &Path, nodes: &[&str]) -> Result<Self> {
        let make = |name: &str| -> Result<PeerKey> {
            let identity = Identity::generate()?;
            identity.save(&dir.join(format!("{name}.key")))?;
            Ok(identity.peer_key())
        };
        Ok(Self {
            dir: dir.to_owned(),
            arbiter: make("arbiter")?,
            nodes: nodes.iter().map(|name| make(name)).collect::<Result<_>>()?,
        })
    }
}

/// The running arbiter; it ends with this value.
#[derive(Debug)]
pub(crate) struct Arbiter(Child);

impl Arbiter {
    /// Starts it; on return it listens.
    pub(crate) fn start(programs: &Programs, keys: &Keys, listen: &str) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&programs.mycelium)
            .args(["arbiter", "run", "--listen", listen, "--key"])
            .arg(keys.dir.join("arbiter.key"))
            .arg("--dir")
            .arg(keys.dir.join("arbiter"));
        for node in &keys.nodes {
            command.args(["--allow", &node.to_string()]);
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut arbiter = spawned.context("cannot start the arbiter")?;
        let stdout = arbiter.stdout.take().context("the arbiter has no output")?;
        let arbiter = Self(arbiter);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if !line.contains("listens") {
            bail!("the arbiter did not start: {line:?}");
        }
        Ok(arbiter)
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
