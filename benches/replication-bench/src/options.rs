//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use bench_vms::programs;
use clap::Parser;

use crate::{limits, measure};

/// Measures what protection costs a guest.
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
    /// Measure these figures only: a name or the beginning of one, for example kv_peak or guest_lost_time.hot; may be given
    /// several times.
    #[arg(long, value_name = "FIGURE")]
    pub(crate) only: Vec<String>,
    /// Rounds in which everybody has a turn: 3, with --quick 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeats: Option<u32>,
    /// How long a busy host is watched for takeovers that nothing calls for, minutes: 1, with --quick 10 seconds.
    #[arg(long, value_name = "MIN", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) soak: Option<u64>,
    /// Folder of endophyte, mycelium and native-guest; beside this program if not given.
    #[arg(long, value_name = "DIR", env = "MYCELIUM_PROGRAMS")]
    pub(crate) programs: Option<PathBuf>,
}

impl Options {
    /// Refuses figures that do not exist.
    pub(crate) fn check(&self) -> Result<()> {
        let groups: Vec<&str> = measure::GROUPS.iter().flat_map(|group| group.names).copied().collect();
        let known = |only: &str| groups.iter().any(|group| begins(group, only) || begins(only, group));
        if let Some(only) = self.only.iter().find(|only| !known(bare(only))) {
            bail!("--only {only}: there is no such figure; there are {}", groups.join(", "));
        }
        Ok(())
    }

    /// Whether a figure, or any of a group of figures with this beginning, is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let name = bare(name);
        self.only.is_empty()
            || self.only.iter().any(|only| begins(name, bare(only)) || begins(bare(only), name))
    }

    pub(crate) fn rounds(&self) -> u32 {
        self.repeats.unwrap_or(if self.quick { limits::ROUNDS_QUICK } else { limits::ROUNDS })
    }

    pub(crate) fn soak_time(&self) -> Duration {
        match self.soak {
            Some(minutes) => Duration::from_secs(minutes * 60),
            None if self.quick => limits::SOAK_QUICK,
            None => Duration::from_secs(60),
        }
    }

    /// Length of a turn of work.
    pub(crate) fn work_seconds(&self) -> u64 {
        if self.quick { limits::WORK_SECONDS_QUICK } else { limits::WORK_SECONDS }
    }

    /// One of our own files.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        programs::find(name, self.programs.as_deref(), "replication")
    }
}

fn bare(name: &str) -> &str {
    name.strip_prefix("replication.").unwrap_or(name)
}

/// Whether `part` is `name` or all of it before a dot.
fn begins(name: &str, part: &str) -> bool {
    name.strip_prefix(part).is_some_and(|rest| !part.is_empty() && (rest.is_empty() || rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse_from(std::iter::once(&"replication-bench").chain(words))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn figures_are_chosen_by_name_or_beginning() {
        let options = parse(&["--only", "guest_lost_time.hot", "--only", "replication.kv_peak"]);
        options.check().unwrap();
        for wanted in ["guest_lost_time", "replication.guest_lost_time.hot.1k", "kv_peak"] {
            assert!(options.wants(wanted), "{wanted}");
        }
        assert!(!options.wants("guest_lost_time.cold.1k") && !options.wants("kv_unprotected"));
        assert!(parse(&[]).wants("anything"));
        let error = parse(&["--only", "kv_pea"]).check().unwrap_err().to_string();
        assert!(error.contains("kv_peak"), "{error}");
    }
}
