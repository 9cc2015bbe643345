//! Building what the demo and the tests run.

use std::fs;
use std::path::{Path, PathBuf};

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
    must(cargo().args([
        "build",
        "-p",
        "endophyte",
        "-p",
        "mycelium",
        "-p",
        "guest-agent",
        "-p",
        "lab-agent",
    ]))?;
    let folder = target_folder()?.join(TARGET).join("debug");
    let guest = native_guest()?;
    let beside = folder.join("native-guest");
    fs::copy(&guest, &beside).with_context(|| format!("cannot copy the guest to {}", beside.display()))?;
    Ok(Built { folder })
}

/// Everything is linked statically for this target (`.cargo/config.toml`), so that one build runs on any Linux host and in
/// the nested lab's bare ones.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the native guest, a workspace of its own; returns its ELF file.
pub(crate) fn native_guest() -> Result<PathBuf> {
    let folder = Path::new("guest-images/native-guest");
    let target = target_folder()?.join("native-guest");
    let mut command = cargo();
    command.args(["build", "--release", "--manifest-path"]).arg(folder.join("Cargo.toml"));
    command.arg("--config").arg(folder.join(".cargo/config.toml")).arg("--target-dir").arg(&target);
    // Flags of the outer workspace must not reach the guest.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    must(&mut command)?;
    Ok(target.join(TARGET).join("release/native-guest"))
}

/// Cargo's target folder, wherever it was configured.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let folder = metadata["target_directory"].as_str().map(PathBuf::from);
    Ok(folder.unwrap_or_else(|| root().join("target")))
}
