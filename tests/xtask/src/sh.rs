//! Running programs, in the open: each command line is shown before it runs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Shows and runs a command; its status.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    let line = line(command);
    eprintln!("$ {line}");
    command.status().with_context(|| format!("cannot start `{line}`"))
}

/// Shows and runs a command; an error unless it succeeds.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command quietly; its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Something to do that may fail.
pub(crate) type Step = Box<dyn FnOnce() -> Result<()>>;

/// Runs steps in order, all of them, and says at the end which failed and how long each took.
pub(crate) fn steps(steps: Vec<(&str, Step)>) -> Result<bool> {
    let mut report = Vec::new();
    for (name, step) in steps {
        eprintln!("== {name}");
        let began = Instant::now();
        let result = step();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        report.push((name, result.is_ok(), began.elapsed().as_secs()));
    }
    eprintln!("==");
    for (name, ok, seconds) in &report {
        eprintln!("{} {name} ({seconds} s)", if *ok { "ok    " } else { "FAILED" });
    }
    Ok(report.iter().all(|(_, ok, _)| *ok))
}

/// Whether a program is in PATH or the system's folders.
pub(crate) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

fn line(command: &Command) -> String {
    let words: Vec<OsString> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(OsString::from).collect();
    words.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
