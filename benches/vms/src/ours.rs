//! Our VMM, as a user starts it: `endophyte run`, no flag that is not needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use endophyte_api::SnapshotRequest;

use crate::limits::PATIENCE;
use crate::stop::Stop;
use crate::{Begin, Prepared, Running, Setup, Vmm};

const API: &str = "api";

/// `endophyte run` with the native guest.
#[derive(Clone, Debug)]
pub struct Endophyte {
    /// The program.
    pub program: PathBuf,
    /// The native guest.
    pub guest: PathBuf,
}

impl Vmm for Endophyte {
    fn name(&self) -> &str {
        "endophyte"
    }

    fn ram_memfd(&self) -> &'static str {
        "endophyte-ram"
    }

    fn prepare(&self, setup: &Setup<'_>, begin: Begin<'_>, folder: &Path) -> Result<Prepared> {
        let spec = folder.join("vm.toml");
        fs::write(&spec, self.spec(setup)).with_context(|| format!("cannot write {}", spec.display()))?;
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--spec").arg(spec);
        if let Begin::Restore(file) = begin {
            command.arg("--restore").arg(file);
        }
        if let Some(reach) = setup.saves_to {
            command.arg("--api").arg(folder.join(API)).arg("--reach").arg(reach);
        }
        Ok(Prepared { command, inherited: Vec::new() })
    }

    fn save(&self, mut running: Running, file: &Path, stop: &Stop) -> Result<()> {
        let socket = running.folder().join(API);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let saved = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, order_snapshot(&socket, file)).await.context("no answer")?
        });
        running.explain(saved.context("cannot save the guest"))?;
        running.wait(stop)
    }
}

impl Endophyte {
    fn spec(&self, setup: &Setup<'_>) -> String {
        let mut spec = format!(
            "name = \"bench\"\nvcpus = 1\nram_mib = {}\nkernel = {:?}\ncmdline = {:?}\n",
            setup.ram_mib,
            self.guest,
            setup.cmdline()
        );
        if let Some(wire) = setup.wire {
            spec += &format!("\n[[net]]\ntap = {:?}\nmac = {:?}\n", wire.tap(), wire.mac());
        }
        if let Some(disk) = &setup.disk {
            spec += &format!("\n[[disk]]\npath = {disk:?}\nformat = \"raw\"\ncache = \"direct\"\n");
        }
        spec
    }
}

async fn order_snapshot(socket: &Path, file: &Path) -> Result<()> {
    let path = file.to_str().context("the path is not text")?.to_owned();
    let mut vm = endophyte_api::connect(socket).await?;
    let mut progress = vm.snapshot(SnapshotRequest { path, stop: true }).await?.into_inner();
    while let Some(step) = progress.message().await? {
        if step.finished {
            return Ok(());
        }
    }
    bail!("the VMM ended without saying that the snapshot is whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Endophyte {
        Endophyte { program: "endophyte".into(), guest: "/guests/native \"guest\"".into() }
    }

    #[test]
    fn a_spec_names_what_was_asked_for() {
        let setup = Setup { ram_mib: 64, words: "heartbeat=5".into(), ..Setup::default() };
        let plain = ours().spec(&setup);
        assert!(plain.contains("ram_mib = 64") && plain.contains("cmdline = \"heartbeat=5\""), "{plain}");
        assert!(plain.contains(r#"kernel = "/guests/native \"guest\"""#) && !plain.contains("[["), "{plain}");
        let disk = ours().spec(&Setup { disk: Some("d.raw".into()), ..setup });
        assert!(disk.contains("[[disk]]") && disk.contains("cache = \"direct\""), "{disk}");
    }

    #[test]
    fn no_flag_is_given_that_a_user_would_not_need() {
        let folder = tempfile::tempdir().unwrap();
        let words = |setup: &Setup<'_>, begin: Begin<'_>| {
            let prepared = ours().prepare(setup, begin, folder.path()).unwrap();
            prepared.command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let plain = words(&Setup::default(), Begin::Boot);
        assert_eq!((plain.len(), plain[0].as_str(), plain[1].as_str()), (3, "run", "--spec"));
        let restored = words(&Setup::default(), Begin::Restore(Path::new("snap")));
        assert_eq!(restored[3..], ["--restore", "snap"]);
        // It is confined to the files of its spec: where a snapshot goes has to be said.
        let saved = words(&Setup { saves_to: Some(Path::new("/work")), ..Setup::default() }, Begin::Boot);
        assert_eq!(saved[saved.len() - 2..], ["--reach", "/work"]);
    }
}
