//! The console of this process' guest: what it has said and may be read again, and what is typed to it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use endophyte_vmm::devices::serial::SerialPort;
use endophyte_vmm::machine::Machine;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::limits::{CONSOLE_CHUNK_BYTES, CONSOLE_RING_BYTES};

/// The offsets that can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Nothing will follow.
    pub(crate) ended: bool,
}

#[derive(Debug)]
enum Store {
    /// Everything, at the guest's own byte offsets, so that a takeover repeats bytes instead of losing or moving them.
    Log(File),
    /// The newest bytes, of a VM that has no run folder.
    Ring(Mutex<VecDeque<u8>>),
}

/// Released console output, for any number of readers at their own pace.
#[derive(Debug)]
pub(crate) struct Tape {
    store: Store,
    span: watch::Sender<Span>,
}

impl Tape {
    /// On a file; what it holds from earlier is not this guest's.
    pub(crate) fn on_log(log: File) -> Arc<Self> {
        Arc::new(Self { store: Store::Log(log), span: watch::Sender::default() })
    }

    /// In memory.
    pub(crate) fn in_memory() -> Arc<Self> {
        Arc::new(Self { store: Store::Ring(Mutex::default()), span: watch::Sender::default() })
    }

    /// The guest has said so much elsewhere, of which nothing is kept here.
    pub(crate) fn begin_at(&self, offset: u64) {
        self.span.send_modify(|span| (span.from, span.to) = (span.from.max(offset), span.to.max(offset)));
    }

    /// Takes output. Offsets may repeat, after a takeover, and leave gaps where the gate was full.
    pub(crate) fn record(&self, offset: u64, bytes: &[u8]) {
        match &self.store {
            Store::Log(log) => {
                if let Err(error) = log.write_all_at(bytes, offset) {
                    tracing::warn!(%error, "the console log cannot be written");
                }
                self.extend(offset, bytes.len(), None);
            }
            Store::Ring(ring) => {
                // Held until the span says what the ring holds: a reader goes by both.
                let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
                ring.extend(bytes);
                let excess = ring.len().saturating_sub(CONSOLE_RING_BYTES);
                ring.drain(..excess);
                self.extend(offset, bytes.len(), Some(ring.len()));
            }
        }
    }

    /// Takes `bytes` bytes at `offset` into the span; of a ring, `kept` bytes are there now.
    fn extend(&self, offset: u64, bytes: usize, kept: Option<usize>) {
        let end = offset + bytes as u64;
        let from = kept.map(|kept| end - kept as u64);
        self.span.send_modify(|span| {
            let first = if span.to == 0 { offset } else { span.from.min(offset) };
            (span.from, span.to) = (from.unwrap_or(first), span.to.max(end));
        });
    }

    /// Reads from `from` on, or from the oldest byte kept if that is later; returns where and how much.
    pub(crate) fn read(&self, from: u64, into: &mut [u8]) -> std::io::Result<(u64, usize)> {
        let span = self.span();
        let at = from.clamp(span.from, span.to);
        let most = usize::try_from(span.to - at).unwrap_or(usize::MAX).min(into.len());
        match &self.store {
            Store::Log(log) => log.read_at(&mut into[..most], at).map(|n| (at, n)),
            Store::Ring(ring) => {
                let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
                // The oldest may have left since the span was read.
                let oldest = self.span().to - ring.len() as u64;
                let at = at.max(oldest);
                let skip = usize::try_from(at - oldest).unwrap_or(usize::MAX);
                let bytes = into[..most].iter_mut().zip(ring.iter().skip(skip));
                Ok((at, bytes.map(|(room, byte)| *room = *byte).count()))
            }
        }
    }

    pub(crate) fn span(&self) -> Span {
        *self.span.borrow()
    }

    /// Sees every new span, or the newest.
    pub(crate) fn watch(&self) -> watch::Receiver<Span> {
        self.span.subscribe()
    }

    fn end(&self) {
        self.span.send_modify(|span| span.ended = true);
    }
}

/// A console port that also leaves what it passes on tape.
pub(crate) struct Taped {
    pub(crate) port: Arc<dyn SerialPort>,
    pub(crate) tape: Arc<Tape>,
}

impl SerialPort for Taped {
    fn write(&self, bytes: &[u8]) {
        self.port.write(bytes);
        self.tape.record(self.tape.span().to, bytes);
    }
}

/// Copies a tape to standard output, from a thread of its own: a terminal that is stopped must not stop the gate.
#[derive(Debug)]
pub(crate) struct StdoutCopy {
    tape: Arc<Tape>,
    done: Receiver<()>,
}

impl StdoutCopy {
    pub(crate) fn start(tape: Arc<Tape>, runtime: Handle) -> std::io::Result<Self> {
        let (tell, done) = channel();
        let source = tape.clone();
        let copy = move || {
            let _ended = tell;
            let (mut span, mut at, mut chunk) = (source.watch(), 0, vec![0; CONSOLE_CHUNK_BYTES]);
            while runtime.block_on(span.wait_for(|s| s.to > at || s.ended)).is_ok() {
                let Ok((offset, n @ 1..)) = source.read(at, &mut chunk) else { return };
                let mut out = std::io::stdout().lock();
                if out.write_all(&chunk[..n]).and_then(|()| out.flush()).is_err() {
                    return;
                }
                at = offset + n as u64;
            }
        };
        std::thread::Builder::new().name("stdout".into()).spawn(copy)?;
        Ok(Self { tape, done })
    }
}

impl Drop for StdoutCopy {
    /// The guest's last words; a reader that has stopped reading is not waited for long.
    fn drop(&mut self) {
        self.tape.end();
        let _ = self.done.recv_timeout(Duration::from_secs(1));
    }
}

/// Types standard input at the guest's console, from a thread that ends with either.
pub(crate) fn type_stdin(machine: Weak<Machine>) {
    std::thread::spawn(move || {
        let mut chunk = [0; 256];
        while let Ok(n @ 1..) = std::io::stdin().read(&mut chunk) {
            let Some(machine) = machine.upgrade() else { return };
            machine.serial_input(&chunk[..n]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tape: &Tape, from: u64) -> (u64, String) {
        let mut room = [0; 64];
        let (at, n) = tape.read(from, &mut room).unwrap();
        (at, String::from_utf8_lossy(&room[..n]).into_owned())
    }

    /// A reader once met a ring that held more than the span told of, and ended the API.
    #[test]
    fn a_reader_sees_ring_and_span_as_one() {
        let tape = Tape::in_memory();
        let writer = std::thread::spawn({
            let tape = Arc::clone(&tape);
            move || (0..20_000).for_each(|n| tape.record(n * 7, b"console"))
        });
        let mut into = [0; 64];
        while !writer.is_finished() {
            let (at, read) = tape.read(0, &mut into).unwrap();
            assert!(at.is_multiple_of(7) || at + read as u64 <= tape.span().to);
        }
        writer.join().unwrap();
        assert_eq!(tape.span().to, 140_000);
    }

    #[test]
    fn a_log_reads_what_was_released_and_not_what_was_there_before() {
        let log = tempfile::tempfile().unwrap();
        log.write_all_at(b"an earlier guest's long words", 0).unwrap();
        let tape = Tape::on_log(log);
        assert_eq!(text(&tape, 0), (0, String::new()));
        tape.record(5, b"hello");
        tape.record(5, b"hello again");
        assert_eq!(text(&tape, 0), (5, "hello again".to_owned()));
        assert_eq!(text(&tape, 11), (11, "again".to_owned()));
        assert_eq!(text(&tape, 99), (16, String::new()));
    }

    #[test]
    fn a_ring_keeps_the_newest() {
        let tape = Tape::in_memory();
        tape.record(0, &vec![b'x'; CONSOLE_RING_BYTES]);
        tape.record(CONSOLE_RING_BYTES as u64, b"end");
        let span = tape.span();
        assert_eq!((span.from, span.to), (3, CONSOLE_RING_BYTES as u64 + 3));
        assert_eq!(text(&tape, span.to - 4), (span.to - 4, "xend".to_owned()));
        assert_eq!(text(&tape, 0).0, 3);
    }
}
