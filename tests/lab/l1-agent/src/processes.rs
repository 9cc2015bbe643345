//! Processes started by orders: their output and their end travel to the tests as they happen.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use lab_agent::limits::OUTPUT_CHUNK_BYTES;
use lab_agent::protocol::{ExitStatus, Message, ProcessId, Refusal, SpawnOrder, Stream};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::outbox::Outbox;

/// The processes that run, each by a descriptor that cannot come to mean another process.
#[derive(Debug)]
pub(crate) struct Processes {
    running: Arc<Mutex<BTreeMap<ProcessId, OwnedFd>>>,
    outbox: Outbox,
}

impl Processes {
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self { running: Arc::default(), outbox }
    }

    /// Starts a process and the threads that carry its output and exit.
    pub(crate) fn spawn(&mut self, order: &SpawnOrder) -> Result<u32, Refusal> {
        let (program, arguments) =
            order.argv.split_first().ok_or_else(|| Refusal::new("argv", "names no program"))?;
        let refuse = |error: std::io::Error| Refusal::new(program, error);
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&order.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(refuse)?;
        let pid = child.id();
        // The child is reaped only by the thread below, so its pid still means it.
        let handle =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(|error| refuse(error.into()))?;
        self.lock().insert(order.process, handle);
        self.watch(child, order.process);
        Ok(pid)
    }

    /// Signals a process; one that has ended already is left in peace.
    pub(crate) fn signal(&self, process: ProcessId, signal: i32) -> Result<(), Refusal> {
        let name = || format!("process {} signal {signal}", process.0);
        let signal = Signal::from_named_raw(signal).ok_or_else(|| Refusal::new(name(), "no such signal"))?;
        match self.lock().get(&process).map(|handle| pidfd_send_signal(handle, signal)) {
            None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(Refusal::new(name(), error)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ProcessId, OwnedFd>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, mut child: Child, process: ProcessId) {
        let streams = [
            child.stdout.take().map(|pipe| forward(pipe, process, Stream::Stdout, self.outbox.clone())),
            child.stderr.take().map(|pipe| forward(pipe, process, Stream::Stderr, self.outbox.clone())),
        ];
        let (running, outbox) = (Arc::clone(&self.running), self.outbox.clone());
        thread::spawn(move || {
            let status = child.wait().map_or(ExitStatus::Code(-1), exit_status);
            // All output comes before the exit, so whoever sees the exit has seen everything.
            streams.into_iter().flatten().for_each(|stream| drop(stream.join()));
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&process);
            // Nobody is left to tell once the channel is gone.
            let _ = outbox.send(&Message::Exited { process, status }, &[]);
        });
    }
}

fn exit_status(status: std::process::ExitStatus) -> ExitStatus {
    status.signal().map_or(ExitStatus::Code(status.code().unwrap_or(-1)), ExitStatus::Signal)
}

fn forward(
    mut pipe: impl Read + Send + 'static,
    process: ProcessId,
    stream: Stream,
    outbox: Outbox,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut chunk = vec![0_u8; OUTPUT_CHUNK_BYTES];
        while let Ok(len @ 1..) = pipe.read(&mut chunk) {
            if outbox.send(&Message::Output { process, stream }, &chunk[..len]).is_err() {
                return;
            }
        }
    })
}
