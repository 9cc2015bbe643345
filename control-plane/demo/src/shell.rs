//! Running other programs to their end, with an error that says which one failed and what it said.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command line given as words; returns its standard output.
pub(crate) fn run(words: &[&str]) -> Result<String> {
    let (program, args) = words.split_first().context("no program")?;
    let line = words.join(" ");
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip` with a command line of its own.
pub(crate) fn ip(line: &str) -> Result<String> {
    let words: Vec<&str> = std::iter::once("ip").chain(line.split_whitespace()).collect();
    run(&words)
}
