//! The emulator's process: it dies when told to, and never outlives this one.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::line_log::{LineLog, NoLine};
use crate::LabError;

/// A running emulator.
#[derive(Debug)]
pub(crate) struct Emulator {
    host: String,
    /// Means this process for ever, even after another one got its pid.
    handle: OwnedFd,
    /// Closes when the process has been reaped.
    ended: Mutex<Receiver<()>>,
    console: Arc<LineLog>,
    messages: Arc<LineLog>,
}

impl Emulator {
    /// Starts the emulator with `control` as its standard input; logs go into `folder`.
    pub(crate) fn start(
        host: &str,
        command: Command,
        control: OwnedFd,
        folder: &Path,
    ) -> Result<Self, LabError> {
        let console = LineLog::create(&folder.join("console.log"))?;
        let messages = LineLog::create(&folder.join("emulator.log"))?;
        let (started, report) = channel();
        let (end, ended) = channel::<()>();
        let program = command.get_program().to_string_lossy().into_owned();
        let logs = (Arc::clone(&console), Arc::clone(&messages));
        thread::spawn(move || supervise(command, control, &logs, &started, end));
        let handle = report.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()));
        let handle = handle.map_err(|source| LabError::Start { command: program, source })?;
        Ok(Self { host: host.to_owned(), handle, ended: Mutex::new(ended), console, messages })
    }

    /// What the host says on its console.
    pub(crate) fn console(&self) -> Arc<LineLog> {
        Arc::clone(&self.console)
    }

    /// Kills the process and waits until it is gone.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
        // Nothing is ever sent: the channel closes with the supervisor, after the process was reaped.
        let _ = self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv();
    }

    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for the process to end by itself and kills it when it does not.
    pub(crate) fn wait_end(&self, timeout: Duration) -> Result<(), LabError> {
        let outcome = self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(timeout);
        if outcome == Err(RecvTimeoutError::Timeout) {
            let error = self.explain("powering off", timeout);
            self.kill();
            return Err(error);
        }
        Ok(())
    }

    pub(crate) fn wait_console(&self, marker: &str, timeout: Duration) -> Result<String, LabError> {
        self.console.wait_line(marker, 1, timeout).map_err(|reason| match reason {
            NoLine::Ended => self.dead(&format!("before saying {marker:?}")),
            NoLine::TimedOut => self.timed_out(&format!("console line {marker:?}"), timeout),
        })
    }

    /// Why something expected of the host did not happen.
    pub(crate) fn explain(&self, doing: &str, waited: Duration) -> LabError {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).try_recv();
        match ended {
            Err(std::sync::mpsc::TryRecvError::Disconnected) => self.dead(&format!("while {doing}")),
            _ => self.timed_out(doing, waited),
        }
    }

    fn dead(&self, reason: &str) -> LabError {
        LabError::HostDead { host: self.host.clone(), reason: reason.to_owned(), tail: self.tail() }
    }

    fn timed_out(&self, what: &str, waited: Duration) -> LabError {
        LabError::Timeout { what: format!("host {}: {what}", self.host), waited, tail: self.tail() }
    }

    /// The emulator lists what its software CPU lacks at every start; that never explains an end.
    fn tail(&self) -> String {
        let messages = self.messages.tail();
        let telling = messages.lines().filter(|line| !line.contains("TCG doesn't support requested feature"));
        telling.chain([self.console.tail().as_str()]).collect::<Vec<_>>().join("\n")
    }

    /// A process that has ended already cannot be signalled and need not be.
    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the process and stays until its end. A thread of its own, because the kernel's "die with your parent" means the
/// parent *thread*, and because only whoever reaps the process may hold its pid.
fn supervise(
    mut command: Command,
    control: OwnedFd,
    (console, messages): &(Arc<LineLog>, Arc<LineLog>),
    started: &Sender<std::io::Result<OwnedFd>>,
    end: Sender<()>,
) {
    die_with_this_thread(&mut command);
    command.stdin(control).stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = command.spawn().and_then(|child| Ok((open_handle(&child)?, child)));
    // The control channel's other end must close with the emulator, not with this thread's copy of it.
    drop(command);
    let (handle, mut child) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => return drop(started.send(Err(error))),
    };
    child.stdout.take().into_iter().for_each(|pipe| console.follow(pipe));
    child.stderr.take().into_iter().for_each(|pipe| messages.follow(pipe));
    drop(started.send(Ok(handle)));
    drop(child.wait());
    drop(end);
}

fn open_handle(child: &Child) -> std::io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

fn die_with_this_thread(command: &mut Command) {
    let parent = std::process::id();
    let arrange = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above took effect; then nobody would send the signal.
        let alive = rustix::process::getppid()
            .is_some_and(|found| found.as_raw_nonzero().get().cast_unsigned() == parent);
        if alive { Ok(()) } else { Err(std::io::ErrorKind::NotConnected.into()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls and compares integers; it takes no lock, allocates
    // nothing and touches no memory shared with other threads.
    unsafe { command.pre_exec(arrange) };
}
