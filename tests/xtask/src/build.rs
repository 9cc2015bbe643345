//! Building what the demo and the tests run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sh::{cargo, must, output, root};

/// Our own programs, in one folder.
pub(crate) struct Built {
    pub(crate) folder: PathBuf,
}

impl Built {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Builds the programs and the native guest, and puts the guest beside the programs.
pub(crate) fn programs() -> Result<Built> {
    programs_with(&[
        "--exclude",
        "slice-tests",
        "--exclude",
        "vmm-bench",
        "--exclude",
        "replication-bench",
        "--bins",
    ])
}

/// As [`programs`], with all tests: the same selection every time, because cargo builds a dependency anew for every other set of
/// features that a selection asks of it.
pub(crate) fn programs_and_tests() -> Result<Built> {
    programs_with(&["--bins", "--tests"])
}

fn programs_with(selection: &[&str]) -> Result<Built> {
    must(cargo().args(["build", "--workspace"]).args(selection))?;
    with_guest("debug")
}

/// Builds the programs of some packages as users get them, and the native guest, for what is to be measured.
pub(crate) fn release_programs(packages: &[&str]) -> Result<Built> {
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    must(cargo().args(["build", "--release", "--bins"]).args(packages))?;
    with_guest("release")
}

/// Puts the native guest beside the programs of a profile.
fn with_guest(profile: &str) -> Result<Built> {
    let folder = target_folder()?.join(TARGET).join(profile);
    let guest = native_guest()?;
    let beside = folder.join("native-guest");
    fs::copy(&guest, &beside).with_context(|| format!("cannot copy the guest to {}", beside.display()))?;
    Ok(Built { folder })
}

/// Everything is linked statically for this target (`.cargo/config.toml`), so that one build runs on any Linux host and in
/// the nested lab's bare ones.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest runs at fixed addresses, on whatever processor; see its README.
const GUEST_FLAGS: &str = "-C relocation-model=static -C target-cpu=x86-64";

/// Builds the native guest, a workspace of its own; returns its ELF file.
pub(crate) fn native_guest() -> Result<PathBuf> {
    let target = target_folder()?.join("native-guest");
    must(guest_cargo("build").arg("--target-dir").arg(&target))?;
    Ok(target.join(TARGET).join("release/native-guest"))
}

/// Cargo on the guest's own workspace, with the guest's flags instead of the outer workspace's.
pub(crate) fn guest_cargo(subcommand: &str) -> Command {
    let mut command = cargo();
    command.args([subcommand, "--release", "--manifest-path", "guest-images/native-guest/Cargo.toml"]);
    command.args(["--target", TARGET]).env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", GUEST_FLAGS);
    command
}

/// Cargo's target folder, wherever it was configured.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let folder = metadata["target_directory"].as_str().map(PathBuf::from);
    Ok(folder.unwrap_or_else(|| root().join("target")))
}
