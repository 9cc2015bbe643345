//! The outside end of a host's control channel: orders go in, replies and output come out.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use lab_agent::frame::{FrameError, read_frame, write_frame};
use lab_agent::protocol::{Answer, Message, Order, ProcessId, Refusal, Request, Stream};

use super::line_log::LineLog;
use super::process::ProcessLog;
use crate::LabError;
use crate::limits::ORDER_TIMEOUT;

/// The agent's first word.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) kernel: String,
    pub(crate) uptime: Duration,
}

type Outcome = (Result<Answer, Refusal>, Vec<u8>);

/// One host's channel; any thread may give orders.
#[derive(Debug)]
pub(crate) struct Control {
    host: String,
    folder: PathBuf,
    console: Arc<LineLog>,
    outgoing: Mutex<UnixStream>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    last_order: u64,
    last_process: u32,
    closed: bool,
    /// Dropping a sender tells its receiver that no reply will come.
    waiting: BTreeMap<u64, Sender<Outcome>>,
    processes: BTreeMap<ProcessId, Arc<ProcessLog>>,
}

impl Control {
    /// Both ends of a channel: ours, and the one that becomes the emulator's standard input.
    pub(crate) fn channel() -> Result<(UnixStream, OwnedFd), LabError> {
        let (ours, theirs) = UnixStream::pair().map_err(LabError::file("create", "a socket pair"))?;
        // A frozen host reads nothing; an order to it must fail, not hang.
        ours.set_write_timeout(Some(ORDER_TIMEOUT)).map_err(LabError::file("set up", "a socket pair"))?;
        Ok((ours, theirs.into()))
    }

    /// Begins to listen; the receiver gets the agent's first word, or closes when the host dies before.
    pub(crate) fn open(
        host: &str,
        ours: UnixStream,
        folder: &Path,
        console: Arc<LineLog>,
    ) -> Result<(Self, Receiver<Ready>), LabError> {
        let incoming = ours.try_clone().map_err(LabError::file("share", "the control channel"))?;
        let shared = Arc::<Mutex<Shared>>::default();
        let (say_ready, ready) = channel();
        let listener = Listener { shared: Arc::clone(&shared), say_ready };
        thread::spawn(move || listener.run(incoming));
        let (host, folder) = (host.to_owned(), folder.to_owned());
        Ok((Self { host, folder, console, outgoing: Mutex::new(ours), shared }, ready))
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Gives an order and waits for what it brings.
    pub(crate) fn order(
        &self,
        order: Order,
        blob: &[u8],
        timeout: Duration,
    ) -> Result<(Answer, Vec<u8>), LabError> {
        let what = format!("host {}: {order:?}", self.host);
        let (tell, told) = channel();
        let id = self.register(tell)?;
        let sent = {
            let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
            write_frame(&mut *outgoing, &Request { id, order }, blob)
        };
        sent.map_err(|source| self.broken(source))?;
        match told.recv_timeout(timeout) {
            Ok((Ok(answer), blob)) => Ok((answer, blob)),
            Ok((Err(refusal), _)) => Err(LabError::Refused { host: self.host.clone(), refusal }),
            Err(RecvTimeoutError::Disconnected) => Err(self.broken(FrameError::Closed)),
            Err(RecvTimeoutError::Timeout) => {
                Err(LabError::Timeout { what, waited: timeout, tail: String::new() })
            }
        }
    }

    /// A number and logs for a process about to be started.
    pub(crate) fn new_process(&self, program: &str) -> Result<(ProcessId, Arc<ProcessLog>), LabError> {
        let mut shared = lock(&self.shared);
        if shared.closed {
            return Err(self.broken(FrameError::Closed));
        }
        shared.last_process += 1;
        let id = ProcessId(shared.last_process);
        let log = Arc::new(ProcessLog::create(&self.folder, id, program)?);
        shared.processes.insert(id, Arc::clone(&log));
        Ok((id, log))
    }

    fn register(&self, tell: Sender<Outcome>) -> Result<u64, LabError> {
        let mut shared = lock(&self.shared);
        if shared.closed {
            return Err(self.broken(FrameError::Closed));
        }
        shared.last_order += 1;
        let id = shared.last_order;
        shared.waiting.insert(id, tell);
        Ok(id)
    }

    /// A channel that closed means a host that is gone, whatever ended it.
    fn broken(&self, source: FrameError) -> LabError {
        let host = self.host.clone();
        match source {
            FrameError::Closed => {
                let reason = "its control channel closed".to_owned();
                LabError::HostDead { host, reason, tail: self.console.tail() }
            }
            source => LabError::Channel { host, source },
        }
    }
}

/// A reply of the wrong kind: agent and library are not of one tree.
pub(crate) fn unexpected(host: &str, answer: &Answer) -> LabError {
    let reason = format!("unexpected answer {answer:?}; build the agent and the tests from the same tree");
    LabError::Refused { host: host.to_owned(), refusal: Refusal::new("order", reason) }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that reads the channel.
#[derive(Debug)]
struct Listener {
    shared: Arc<Mutex<Shared>>,
    say_ready: Sender<Ready>,
}

impl Listener {
    /// Ends with the host, or with the first frame that makes no sense.
    fn run(self, mut incoming: UnixStream) {
        while let Ok((message, blob)) = read_frame::<Message>(&mut incoming) {
            self.take(message, blob);
        }
        let mut shared = lock(&self.shared);
        shared.closed = true;
        shared.waiting.clear();
        shared.processes.values().for_each(|process| process.end(None));
    }

    fn take(&self, message: Message, blob: Vec<u8>) {
        match message {
            Message::Ready { kernel, uptime_ms } => {
                // Nobody listens any more when the boot took too long.
                let _ = self.say_ready.send(Ready { kernel, uptime: Duration::from_millis(uptime_ms) });
            }
            Message::Reply { id, outcome } => {
                // The order may have been given up meanwhile.
                let waiting = lock(&self.shared).waiting.remove(&id);
                if let Some(tell) = waiting {
                    drop(tell.send((outcome, blob)));
                }
            }
            Message::Output { process, stream } => {
                self.with_process(process, |log| log.append(stream, &blob));
            }
            Message::Exited { process, status } => self.with_process(process, |log| log.end(Some(status))),
        }
    }

    fn with_process(&self, process: ProcessId, act: impl FnOnce(&ProcessLog)) {
        let found = lock(&self.shared).processes.get(&process).cloned();
        if let Some(log) = found {
            act(&log);
        }
    }
}

impl ProcessLog {
    fn append(&self, stream: Stream, bytes: &[u8]) {
        self.stream(stream).append(bytes);
    }
}
