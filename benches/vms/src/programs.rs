//! Our own programs, and which run of them this is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// One of our own files: in `folder`, or beside this program. `bench` is what `cargo xtask bench` calls it.
///
/// # Errors
/// When it is not there; the message says what builds it.
pub fn find(name: &str, folder: Option<&Path>, bench: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = folder.or(this.parent()).unwrap_or(Path::new("."));
    let file = folder.join(name);
    if !file.is_file() {
        bail!(
            "{} is missing; `cargo xtask bench {bench}` builds it, or name its folder with --programs",
            file.display()
        );
    }
    Ok(file)
}

/// The last word of what a program says about its version, or `unknown`.
#[must_use]
pub fn version_of(program: &Path) -> String {
    let told = Command::new(program).arg("--version").output().ok();
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    told.split_whitespace().last().unwrap_or("unknown").to_owned()
}

/// When, in seconds since 1970, and which process: nothing else of this machine has that name.
#[must_use]
pub fn run_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", now.as_secs(), std::process::id())
}
