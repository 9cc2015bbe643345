//! Benches with a program of their own: builds what is compared and hands over to it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{build, sh, tools};

/// What only these benches understand.
#[derive(Debug, Args)]
pub(super) struct HarnessArgs {
    /// Replication, vmm: draw each figure into this folder, as SVG and PNG.
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    /// Replication, vmm: fewer and shorter turns, which show that everything works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Replication, vmm: measure this figure only; may be given several times.
    #[arg(long, value_name = "FIGURE")]
    only: Vec<String>,
    /// Vmm: where disk images and snapshots are written for the time of the run: on the file system to be measured.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

/// A bench's own program.
pub(super) struct Harness {
    /// Its name.
    pub(super) program: &'static str,
    /// The packages it needs built as users get them.
    pub(super) packages: &'static [&'static str],
}

pub(super) const REPLICATION: Harness =
    Harness { program: "replication-bench", packages: &["endophyte", "mycelium", "replication-bench"] };
pub(super) const VMM: Harness = Harness { program: "vmm-bench", packages: &["endophyte", "vmm-bench"] };

pub(super) fn run(
    harness: &Harness,
    args: &HarnessArgs,
    repeats: Option<u64>,
    json: bool,
) -> Result<ExitCode> {
    tools::ensure(&[tools::GCC, tools::IP])?;
    // Without its peer a bench is still of use, and says so itself.
    if let Err(error) = tools::ensure(&[tools::QEMU]) {
        eprintln!("no peer to compare with: {error:#}");
    }
    let built = build::release_programs(harness.packages)?;
    let mut bench = Command::new(built.program(harness.program));
    let status = sh::status(bench.arg("--programs").arg(&built.folder).args(words(args, repeats, json)))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn words(args: &HarnessArgs, repeats: Option<u64>, json: bool) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let flags = [("--json", json), ("--quick", args.quick)];
    let flags = flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag.to_owned());
    let pairs = [
        ("--repeats", repeats.map(|n| n.to_string())),
        ("--plot", args.plot.as_deref().map(path)),
        ("--work", args.work.as_deref().map(path)),
    ];
    let pairs = pairs.into_iter().filter_map(|(option, value)| Some((option, value?)));
    let only = args.only.iter().map(|figure| ("--only", figure.clone()));
    flags.chain(pairs.chain(only).flat_map(|(option, value)| [option.to_owned(), value])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_was_asked_for_is_handed_over() {
        let args = HarnessArgs {
            plot: Some("pictures".into()),
            quick: true,
            only: vec!["a".into(), "b".into()],
            work: None,
        };
        let line = words(&args, Some(3), true).join(" ");
        assert_eq!(line, "--json --quick --repeats 3 --plot pictures --only a --only b");
    }
}
