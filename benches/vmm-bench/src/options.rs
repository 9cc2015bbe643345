//! The command line.

use std::path::PathBuf;

use anyhow::{Result, bail};
use bench_vms::programs;
use clap::Parser;

use crate::limits;
use crate::measure;

/// Measures our VMM against QEMU's microvm: the same guest in turn.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// One JSON object per figure instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw each figure into this folder, as SVG and PNG.
    #[arg(long, value_name = "DIR")]
    pub(crate) plot: Option<PathBuf>,
    /// Fewer and shorter turns: shows that everything works, not how fast it is.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure this figure only, for example start_to_first_instruction or blk_randread; may be given several times.
    #[arg(long, value_name = "FIGURE")]
    pub(crate) only: Vec<String>,
    /// Rounds in which every VMM has its turn: 5, with --quick 2.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeats: Option<u32>,
    /// Where disk images and snapshots are written for the time of the run: on the file system to be measured.
    #[arg(long, value_name = "DIR")]
    pub(crate) work: Option<PathBuf>,
    /// Folder of endophyte and native-guest; beside this program if not given.
    #[arg(long, value_name = "DIR", env = "MYCELIUM_PROGRAMS")]
    pub(crate) programs: Option<PathBuf>,
}

impl Options {
    /// Refuses figures that do not exist.
    pub(crate) fn check(&self) -> Result<()> {
        let unknown = |only: &&String| !measure::NAMES.iter().any(|name| named(name, only));
        if let Some(only) = self.only.iter().find(unknown) {
            bail!("--only {only}: there is no such figure; there are {}", measure::NAMES.join(", "));
        }
        Ok(())
    }

    /// Whether a figure is to be measured.
    pub(crate) fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| named(figure, only))
    }

    pub(crate) fn rounds(&self) -> u32 {
        self.repeats.unwrap_or(if self.quick { limits::ROUNDS_QUICK } else { limits::ROUNDS })
    }

    /// Length of a turn of requests or disk work.
    pub(crate) fn work_seconds(&self) -> u64 {
        if self.quick { limits::WORK_SECONDS_QUICK } else { limits::WORK_SECONDS }
    }

    /// One of our own files.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        programs::find(name, self.programs.as_deref(), "vmm")
    }
}

/// Whether `only` means a figure: its whole name, or all of it before a dot, with or without the area.
fn named(figure: &str, only: &str) -> bool {
    let only = only.strip_prefix("vmm.").unwrap_or(only);
    let rest = figure.strip_prefix("vmm.").and_then(|name| name.strip_prefix(only));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse_from(std::iter::once(&"vmm-bench").chain(words))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn figures_are_chosen_by_name_or_group() {
        let options = parse(&["--only", "blk_randread", "--only", "vmm.blk_randwrite.d1"]);
        options.check().unwrap();
        assert!(options.wants("vmm.blk_randread.d1") && options.wants("vmm.blk_randread.d32"));
        assert!(options.wants("vmm.blk_randwrite.d1") && !options.wants("vmm.blk_randwrite.d32"));
        assert!(parse(&[]).wants("vmm.anything"));
    }

    #[test]
    fn a_figure_that_is_not_there_is_refused() {
        for only in ["blk", "start", "vmm.", ""] {
            let error = parse(&["--only", only]).check().unwrap_err().to_string();
            assert!(error.contains("vmm.start_to_first_instruction"), "{only}: {error}");
        }
    }

    #[test]
    fn a_quick_run_is_shorter_unless_told_otherwise() {
        assert!(parse(&["--quick"]).rounds() < parse(&[]).rounds());
        assert_eq!(parse(&["--quick", "--repeats", "9"]).rounds(), 9);
    }
}
