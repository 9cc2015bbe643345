//! A VMM's processes, which end when this is dropped.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::console::Console;
use crate::family;
use crate::limits::{PATIENCE, STDERR_LINES};
use crate::stop::Stop;
use crate::{Begin, Setup, Vmm};

/// One guest and the process that runs it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    console: Console,
    spawned: Instant,
    folder: TempDir,
}

impl Running {
    /// Starts a guest; its files go to a folder of its own below `work`.
    pub fn start(vmm: &dyn Vmm, setup: &Setup<'_>, begin: Begin<'_>, work: &Path) -> Result<Self> {
        let folder = tempfile::tempdir_in(work).context("cannot make a folder for a VM")?;
        let mut prepared = vmm.prepare(setup, begin, folder.path())?;
        prepared.inherited.iter().try_for_each(|file| inherit(file.as_fd()))?;
        let errors = File::create(folder.path().join("stderr"))?;
        prepared.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let spawned = Instant::now();
        let mut child = prepared.command.spawn().with_context(|| format!("cannot start {}", vmm.name()))?;
        let console = Console::new(child.stdout.take().context("no pipe to the guest's console")?);
        Ok(Self { child, console, spawned, folder })
    }

    /// The VMM's processes.
    pub fn processes(&self) -> Vec<u32> {
        family::of(self.child.id())
    }

    /// Just before the process was made.
    pub fn spawned(&self) -> Instant {
        self.spawned
    }

    /// The folder that only this VM uses.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// From the making of the process to the guest's first byte.
    pub fn first_byte(&mut self, stop: &Stop) -> Result<Duration> {
        let came = self.console.first_byte(self.spawned + PATIENCE, stop);
        Ok(self.explain(came)?.duration_since(self.spawned))
    }

    /// Waits until the guest says that it is up.
    pub fn ready(&mut self, stop: &Stop) -> Result<()> {
        self.find(PATIENCE, stop, |line| Ok(line.contains("native-guest: ready").then_some(())))
    }

    /// Waits for a line of the guest, for at most `time`.
    pub fn find<T>(
        &mut self,
        time: Duration,
        stop: &Stop,
        wanted: impl Fn(&str) -> Result<Option<T>>,
    ) -> Result<T> {
        let found = self.console.find(Instant::now() + time, stop, wanted);
        self.explain(found)
    }

    /// Adds the VMM's own last words to what went wrong with it.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let told = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
            match last_lines(&told) {
                words if words.is_empty() => error,
                words => error.context(format!("the VMM said: {words}")),
            }
        })
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, stop: &Stop) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            stop.pause(Duration::from_millis(5))?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for, its number may be somebody else's.
        let family = if matches!(self.child.try_wait(), Ok(None)) { self.processes() } else { Vec::new() };
        // They may have ended already; waiting is what matters.
        let _ = self.child.kill();
        family.iter().skip(1).for_each(|pid| kill(*pid));
        let _ = self.child.wait();
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn inherit(file: BorrowedFd<'_>) -> Result<()> {
    fcntl_setfd(file, FdFlags::empty()).context("cannot pass a file on")
}

fn last_lines(told: &str) -> String {
    let lines: Vec<&str> = told.lines().rev().take(STDERR_LINES).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_words_are_quoted() {
        let told = (0..20).map(|n| format!("line {n}\n")).collect::<String>();
        let quoted = last_lines(&told);
        assert!(quoted.starts_with("line 15 / ") && quoted.ends_with("line 19"), "{quoted}");
        assert_eq!(last_lines(""), "");
    }
}
