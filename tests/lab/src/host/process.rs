//! A program running inside a host, seen from outside.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lab_agent::protocol::{Answer, ExitStatus, Order, ProcessId, SpawnOrder, Stream};

use super::control::{self, Control};
use super::line_log::{LineLog, NoLine};
use crate::LabError;
use crate::limits::ORDER_TIMEOUT;

/// A started program. Dropping this leaves it running.
#[derive(Debug, Clone)]
pub struct Process {
    control: Arc<Control>,
    id: ProcessId,
    pid: u32,
    program: String,
    log: Arc<ProcessLog>,
}

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to standard output (the last 16 MiB).
    pub stdout: Vec<u8>,
    /// All it wrote to standard error (the last 16 MiB).
    pub stderr: Vec<u8>,
}

impl Process {
    pub(crate) fn start(
        control: Arc<Control>,
        argv: &[&str],
        env: &BTreeMap<String, String>,
    ) -> Result<Self, LabError> {
        let program = argv.first().copied().unwrap_or_default().to_owned();
        let (id, log) = control.new_process(&program)?;
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let order = Order::Spawn(SpawnOrder { process: id, argv, env: env.clone() });
        match control.order(order, &[], ORDER_TIMEOUT)?.0 {
            Answer::Started { pid } => Ok(Self { control, id, pid, program, log }),
            other => Err(control::unexpected(control.host(), &other)),
        }
    }

    /// Its pid inside the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end and for all of its output. A child that keeps its output open delays this.
    ///
    /// # Errors
    /// [`LabError::Timeout`] with its output's end; [`LabError::HostDead`] when the host died first.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus, LabError> {
        match self.log.wait_end(timeout) {
            Some(End { status: Some(status) }) => Ok(status),
            Some(End { status: None }) => Err(self.host_died("before it ended")),
            None => Err(self.timed_out("its end", timeout)),
        }
    }

    /// Waits for its end and returns what it wrote.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn output(&self, timeout: Duration) -> Result<Output, LabError> {
        let status = self.wait(timeout)?;
        Ok(Output { status, stdout: self.written(Stream::Stdout), stderr: self.written(Stream::Stderr) })
    }

    /// What it has written so far; still there after the host's death.
    pub fn written(&self, stream: Stream) -> Vec<u8> {
        self.log.stream(stream).content()
    }

    /// Waits for a line containing `marker`, from the program's start, and returns it.
    ///
    /// # Errors
    /// [`LabError::Timeout`] or, when the stream ended without it, [`LabError::HostDead`] or [`LabError::Command`].
    pub fn wait_line(&self, stream: Stream, marker: &str, timeout: Duration) -> Result<String, LabError> {
        self.wait_nth_line(stream, marker, 1, timeout)
    }

    /// As [`wait_line`](Self::wait_line), for the `nth` such line, counted from 1.
    ///
    /// # Errors
    /// As [`wait_line`](Self::wait_line).
    pub fn wait_nth_line(
        &self,
        stream: Stream,
        marker: &str,
        nth: usize,
        timeout: Duration,
    ) -> Result<String, LabError> {
        self.log.stream(stream).wait_line(marker, nth, timeout).map_err(|reason| match reason {
            NoLine::TimedOut => self.timed_out(&format!("line {marker:?}"), timeout),
            NoLine::Ended => self.ended_without(marker),
        })
    }

    /// Sends it a signal by number; one that has ended is left in peace.
    ///
    /// # Errors
    /// [`LabError::Refused`] for a signal that does not exist.
    pub fn signal(&self, signal: i32) -> Result<(), LabError> {
        self.control.order(Order::Signal { process: self.id, signal }, &[], ORDER_TIMEOUT).map(drop)
    }

    /// Kills it (SIGKILL) without waiting for its end.
    ///
    /// # Errors
    /// [`LabError::HostDead`] when its host is gone.
    pub fn kill(&self) -> Result<(), LabError> {
        self.signal(libc::SIGKILL)
    }

    fn ended_without(&self, marker: &str) -> LabError {
        // Streams end a moment before the exit is known.
        match self.log.wait_end(ORDER_TIMEOUT) {
            Some(End { status: Some(status) }) => LabError::Command {
                command: format!("{} in host {}", self.program, self.control.host()),
                status: format!("{status:?}, without saying {marker:?}"),
                stderr: self.log.tail(),
            },
            _ => self.host_died(&format!("before it said {marker:?}")),
        }
    }

    fn host_died(&self, when: &str) -> LabError {
        let reason = format!("{} was running there, {when}; its output follows", self.program);
        LabError::HostDead { host: self.control.host().to_owned(), reason, tail: self.log.tail() }
    }

    fn timed_out(&self, what: &str, waited: Duration) -> LabError {
        let what = format!("{} in host {}: {what}", self.program, self.control.host());
        LabError::Timeout { what, waited, tail: self.log.tail() }
    }
}

/// That a process is over; without a status when its host died first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    status: Option<ExitStatus>,
}

/// Output and end of one process.
#[derive(Debug)]
pub(crate) struct ProcessLog {
    stdout: Arc<LineLog>,
    stderr: Arc<LineLog>,
    end: Mutex<Option<End>>,
    ended: Condvar,
}

impl ProcessLog {
    /// Logs in `folder`, named by the process's number and program.
    pub(crate) fn create(folder: &Path, id: ProcessId, program: &str) -> Result<Self, LabError> {
        let program = program.rsplit('/').next().unwrap_or_default();
        let log = |ending| LineLog::create(&folder.join(format!("{:03}-{program}.{ending}", id.0)));
        Ok(Self { stdout: log("out")?, stderr: log("err")?, end: Mutex::default(), ended: Condvar::new() })
    }

    pub(crate) fn stream(&self, stream: Stream) -> &LineLog {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    /// The first end counts: a host's death after a process's exit changes nothing.
    pub(crate) fn end(&self, status: Option<ExitStatus>) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(End { status });
        self.stdout.end();
        self.stderr.end();
        self.ended.notify_all();
    }

    fn wait_end(&self, timeout: Duration) -> Option<End> {
        let deadline = Instant::now() + timeout;
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if end.is_some() || left.is_zero() {
                return *end;
            }
            end = self.ended.wait_timeout(end, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn tail(&self) -> String {
        format!("{}\n{}", self.stdout.tail(), self.stderr.tail()).trim().to_owned()
    }
}
