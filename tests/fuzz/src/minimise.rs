//! From what searches have found to what is committed: inputs that add coverage, the shortest first.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cli::Choice;
use crate::corpus::{self, Folders};
use crate::limits::{KEPT_BYTES, KEPT_BYTES_ALL, KEPT_FILES, REPLAY_PATIENCE};
use crate::run::libfuzzer;
use crate::targets::Target;
use crate::watch::watch;

#[derive(Debug, Args)]
pub(crate) struct MinimiseArgs {
    #[command(flatten)]
    choice: Choice,
    /// Where searches have kept what they found.
    #[arg(long)]
    work: PathBuf,
}

/// Renews the committed corpus. Files with names that people gave stay.
pub(crate) fn minimise(args: &MinimiseArgs) -> Result<bool> {
    for target in args.choice.targets()? {
        if target.cannot_run() {
            println!("{:<14}skipped: it needs /dev/kvm", target.name);
            continue;
        }
        let folders = Folders::new(target, &args.work)?;
        let merged = tempfile::tempdir_in(&args.work)?;
        merge(target, &folders, merged.path())?;
        let (files, bytes) = replace(&folders.committed, merged.path())?;
        println!("{:<14}{files:>6} files {bytes:>8} bytes", target.name);
    }
    Ok(true)
}

fn merge(target: &Target, folders: &Folders, into: &Path) -> Result<()> {
    let mut command = libfuzzer(target)?;
    // In this order: what is known already is not taken again under another name.
    command.args(["-merge=1", "-set_cover_merge=1"]).args([
        into,
        &folders.seeds,
        &folders.committed,
        &folders.found,
    ]);
    // An input that fails while it is merged is known already; elsewhere it would land in the current folder.
    command.arg(format!("-artifact_prefix={}-", folders.current.display()));
    let ended = watch(&mut command, REPLAY_PATIENCE, |_| {})?;
    if ended.hung || !ended.status.success() {
        bail!(
            "{}: the merge failed ({}); run `cargo xtask fuzz --target {}` first",
            target.name,
            ended.status,
            target.name
        );
    }
    Ok(())
}

/// Puts the merged inputs in place of those that an earlier merge left; returns how many there are, and their bytes.
fn replace(committed: &Path, merged: &Path) -> Result<(usize, u64)> {
    for file in corpus::files(committed)?.iter().filter(|file| is_merged(file)) {
        fs::remove_file(file)?;
    }
    let length = |file: &Path| fs::metadata(file).map_or(u64::MAX, |found| found.len());
    let mut files = corpus::files(merged)?;
    files.sort_by_key(|file| length(file));
    let (mut count, mut bytes) = (0, 0);
    for file in files {
        let more = length(&file);
        if more > KEPT_BYTES || bytes + more > KEPT_BYTES_ALL || count == KEPT_FILES {
            break;
        }
        let name = file.file_name().context("a file has a name")?;
        fs::copy(&file, committed.join(name))?;
        (count, bytes) = (count + 1, bytes + more);
    }
    Ok((count, bytes))
}

/// libFuzzer names inputs by their SHA-1.
fn is_merged(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("");
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_leaves_named_files_and_takes_the_shortest() {
        let [committed, merged] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let put = |folder: &tempfile::TempDir, name: &str, bytes: u64| {
            fs::write(folder.path().join(name), vec![0; usize::try_from(bytes).unwrap()]).unwrap();
        };
        put(&committed, "a-bug", 1);
        put(&committed, &"0".repeat(40), 1);
        put(&merged, &"1".repeat(40), 10);
        put(&merged, &"2".repeat(40), KEPT_BYTES_ALL - 5);
        assert_eq!(replace(committed.path(), merged.path()).unwrap(), (1, 10));
        let left = corpus::files(committed.path()).unwrap();
        assert_eq!(left, [committed.path().join("1".repeat(40)), committed.path().join("a-bug")]);
    }
}
