//! Binaries of this workspace that run where no shared library is: inside lab hosts and guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::LabError;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC_FLAGS: &str = "-C target-feature=+crt-static";

/// Names a folder of binaries built statically before, so that a run of many tests need not ask cargo for each.
const PREBUILT_FOLDER: &str = "MYCELIUM_STATIC_BINARIES";

/// Builds a binary of the workspace statically and returns its path; cargo knows when nothing has to be done. A binary of
/// this name in the folder `$MYCELIUM_STATIC_BINARIES` is taken as it is.
///
/// # Errors
/// [`LabError::Command`] with the compiler's messages on standard error; [`LabError::Image`] when cargo names no binary.
pub fn static_binary(package: &str, binary: &str) -> Result<PathBuf, LabError> {
    if let Some(prebuilt) = prebuilt(binary) {
        return Ok(prebuilt);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--target", TARGET, "--package", package, "--bin", binary]);
    command.args(["--quiet", "--message-format", "json-render-diagnostics"]);
    // Flags given to an outer cargo in the encoded form would win over these.
    command
        .env("RUSTFLAGS", STATIC_FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(workspace_root());
    let messages = crate::tool::run(&mut command)?;
    let missing =
        || LabError::image(binary, "cargo built no such binary", "check the names of package and binary");
    strip(&messages.lines().find_map(|line| executable(line, binary)).ok_or_else(missing)?)
}

/// A copy without debug information: line numbers make up five sixths of a static binary, and all of it would be unpacked
/// into a host's RAM at every boot. Function names stay.
fn strip(binary: &Path) -> Result<PathBuf, LabError> {
    let stripped = binary.with_extension("stripped");
    let folder = binary.parent().unwrap_or(Path::new("."));
    let staged = tempfile::NamedTempFile::new_in(folder)
        .map_err(LabError::file("write into", folder))?
        .into_temp_path();
    crate::tool::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&staged).arg(binary))?;
    // Another test may be reading the one that is there.
    staged.persist(&stripped).map_err(|error| LabError::file("write", &stripped)(error.error))?;
    Ok(stripped)
}

fn prebuilt(binary: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os(PREBUILT_FOLDER)?).join(binary);
    path.is_file().then_some(path)
}

fn workspace_root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

#[derive(Deserialize)]
struct CargoMessage {
    target: Option<CargoTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
}

fn executable(line: &str, binary: &str) -> Option<PathBuf> {
    let message: CargoMessage = serde_json::from_str(line).ok()?;
    message.executable.filter(|_| message.target.is_some_and(|target| target.name == binary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_executable_is_picked() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"lab-agent"},"executable":"/t/lab-agent"}"#;
        assert_eq!(executable(line, "lab-agent"), Some("/t/lab-agent".into()));
        assert_eq!(executable(line, "other"), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#, "lab-agent"), None);
    }
}
