//! Running other programs to their end, with an error that says which one failed and what it said.

use std::io::Write;
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

/// Gives `ip` several lines in one go, and goes on where one fails.
pub(crate) fn ip_batch(lines: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start `ip -batch`")?;
    let written = ip.stdin.take().context("ip has no input")?.write_all(lines.as_bytes());
    let ended = ip.wait()?;
    written?;
    if !ended.success() {
        bail!("`ip -batch` failed ({ended})");
    }
    Ok(())
}
