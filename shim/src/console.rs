//! The guest's serial console as the container's standard streams.
//!
//! containerd reads the output; when it restarts nobody does for a while. The guest must not wait for that, so output is
//! always taken, and the oldest of it goes when too much waits.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{self, Receiver, Sender};
use tokio::process::ChildStdin;
use tokio::time::timeout;

use crate::limits;

/// Where output goes.
#[derive(Debug)]
pub(crate) enum Sink {
    Fifo(Sender),
    File(File),
    Nowhere,
}

/// A stream that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error("cannot open {path} for the container's {stream}: {source}")]
    Open { stream: &'static str, path: String, source: io::Error },
    #[error("{0} as the container's output is not supported for VM images; use a FIFO or file://")]
    Scheme(String),
}

impl Sink {
    /// Opens what containerd names: a FIFO, `file://` something, or nothing.
    pub(crate) async fn open(stream: &'static str, target: &str) -> Result<Self, ConsoleError> {
        let fail = |source| ConsoleError::Open { stream, path: target.to_owned(), source };
        if target.is_empty() {
            return Ok(Self::Nowhere);
        }
        if let Some(path) = target.strip_prefix("file://") {
            let file = File::options().append(true).create(true).open(path).await.map_err(fail)?;
            return Ok(Self::File(file));
        }
        if target.contains("://") {
            return Err(ConsoleError::Scheme(target.to_owned()));
        }
        // Opened for reading too: a FIFO without a reader would end us, and a restart of containerd is no reason to end.
        let fifo = pipe::OpenOptions::new().read_write(true).open_sender(Path::new(target)).map_err(fail)?;
        Ok(Self::Fifo(fifo))
    }

    /// Carries everything that `from` says, until it ends and what it said has been read or given up.
    pub(crate) async fn carry(self, from: impl AsyncRead + Unpin) {
        match self {
            Self::Fifo(fifo) => Carrier { fifo, backlog: VecDeque::new() }.run(from).await,
            Self::File(mut file) => {
                let mut from = from;
                let _ = tokio::io::copy(&mut from, &mut file).await;
                let _ = file.flush().await;
            }
            Self::Nowhere => {
                let mut from = from;
                let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            }
        }
    }
}

struct Carrier {
    fifo: Sender,
    backlog: VecDeque<u8>,
}

impl Carrier {
    async fn run(mut self, mut from: impl AsyncRead + Unpin) {
        let mut chunk = [0; 4096];
        loop {
            tokio::select! {
                read = from.read(&mut chunk) => match read {
                    Ok(n @ 1..) => self.take(&chunk[..n]),
                    _ => break,
                },
                _ = self.fifo.writable(), if !self.backlog.is_empty() => self.pass_on(),
            }
        }
        let rest = async {
            while !self.backlog.is_empty() && self.fifo.writable().await.is_ok() {
                self.pass_on();
            }
        };
        let _ = timeout(limits::CONSOLE_DRAIN, rest).await;
    }

    fn take(&mut self, bytes: &[u8]) {
        self.backlog.extend(bytes);
        let excess = self.backlog.len().saturating_sub(limits::CONSOLE_BACKLOG_BYTES);
        self.backlog.drain(..excess);
        self.pass_on();
    }

    fn pass_on(&mut self) {
        while !self.backlog.is_empty() {
            match self.fifo.try_write(self.backlog.as_slices().0) {
                Ok(written) => drop(self.backlog.drain(..written)),
                Err(_) => return,
            }
        }
    }
}

/// What the container's user types.
#[derive(Debug)]
pub(crate) struct Source(Receiver);

impl Source {
    /// Opens a FIFO, if there is to be input at all.
    pub(crate) fn open(target: &str) -> Result<Option<Self>, ConsoleError> {
        if target.is_empty() {
            return Ok(None);
        }
        let fifo = pipe::OpenOptions::new().read_write(true).open_receiver(Path::new(target));
        let fail = |source| ConsoleError::Open { stream: "stdin", path: target.to_owned(), source };
        Ok(Some(Self(fifo.map_err(fail)?)))
    }

    /// Types it into the VM; ends with the VM, or when its task is aborted (containerd's CloseIO).
    pub(crate) async fn carry(mut self, mut to: ChildStdin) {
        let _ = tokio::io::copy(&mut self.0, &mut to).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn fifo(dir: &tempfile::TempDir) -> String {
        let path = dir.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        path.display().to_string()
    }

    #[tokio::test]
    async fn output_nobody_reads_loses_its_oldest_bytes_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let sink = Sink::open("stdout", &path).await.unwrap();
        let (mut guest, console) = tokio::io::duplex(4096);
        let carried = tokio::spawn(sink.carry(console));
        let line = [b'x'; 4096];
        for _ in 0..2 * limits::CONSOLE_BACKLOG_BYTES / line.len() {
            guest.write_all(&line).await.unwrap();
        }
        guest.write_all(b"the end").await.unwrap();
        let reader = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            std::fs::File::open(path).unwrap().read_to_end(&mut text).unwrap();
            text
        });
        drop(guest);
        carried.await.unwrap();
        let text = reader.await.unwrap();
        assert!(text.ends_with(b"the end"));
        assert!(text.len() < 2 * limits::CONSOLE_BACKLOG_BYTES);
    }

    #[tokio::test]
    async fn what_is_no_fifo_is_named() {
        let refused = Sink::open("stdout", "binary:///bin/logger").await.unwrap_err().to_string();
        assert!(refused.contains("binary:///bin/logger") && refused.contains("FIFO"), "{refused}");
        let missing = Sink::open("stdout", "/nonexistent/fifo").await.unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/fifo"), "{missing}");
    }
}
