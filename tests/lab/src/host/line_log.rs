//! A growing log that is kept in a file and can be searched for lines as they come.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::LabError;
use crate::limits::{LOG_BYTES_MAX, TAIL_LINES};

/// Why an awaited line did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLine {
    /// The log ended without it.
    Ended,
    /// Time is up.
    TimedOut,
}

/// A log with one writer and any number of waiting readers.
#[derive(Debug)]
pub(crate) struct LineLog {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    file: File,
    kept: Vec<u8>,
    ended: bool,
}

impl LineLog {
    pub(crate) fn create(path: &Path) -> Result<Arc<Self>, LabError> {
        let file = File::create(path).map_err(LabError::file("create the log", path))?;
        let state = State { file, kept: Vec::new(), ended: false };
        Ok(Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Copies a pipe into the log until its end, in a thread of its own.
    pub(crate) fn follow(self: &Arc<Self>, mut pipe: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        thread::spawn(move || {
            let mut chunk = [0_u8; 4096];
            while let Ok(len @ 1..) = pipe.read(&mut chunk) {
                log.append(&chunk[..len]);
            }
            log.end();
        });
    }

    pub(crate) fn append(&self, bytes: &[u8]) {
        let mut state = self.lock();
        // A full disk must not end a test: searching goes on in memory.
        let _ = state.file.write_all(bytes);
        state.kept.extend_from_slice(bytes);
        let excess = state.kept.len().saturating_sub(LOG_BYTES_MAX);
        state.kept.drain(..excess);
        self.changed.notify_all();
    }

    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for the `nth` complete line that contains `marker`, counted from 1 at the log's beginning.
    pub(crate) fn wait_line(&self, marker: &str, nth: usize, timeout: Duration) -> Result<String, NoLine> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(line) = find_line(&state.kept, marker.as_bytes(), nth, state.ended) {
                return Ok(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err(if state.ended { NoLine::Ended } else { NoLine::TimedOut });
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.lock().kept.clone()
    }

    /// The last lines, for errors.
    pub(crate) fn tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.lock().kept).replace('\r', "");
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `nth` line with the marker; the last one counts as complete only when the log has ended.
fn find_line(text: &[u8], marker: &[u8], nth: usize, ended: bool) -> Option<String> {
    let lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| ended || line.ends_with(b"\n"));
    let mut marked = lines.filter(|line| line.windows(marker.len().max(1)).any(|part| part == marker));
    let found = marked.nth(nth.saturating_sub(1))?;
    Some(String::from_utf8_lossy(found).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, Arc<LineLog>) {
        let folder = tempfile::tempdir().unwrap();
        let log = LineLog::create(&folder.path().join("log")).unwrap();
        (folder, log)
    }

    #[test]
    fn a_line_counts_when_it_is_complete() {
        let (_folder, log) = log();
        log.append(b"noise\r\nlab-agent: rea");
        assert_eq!(log.wait_line("lab-agent", 1, Duration::ZERO), Err(NoLine::TimedOut));
        log.append(b"dy\r\n");
        assert_eq!(log.wait_line("lab-agent", 1, Duration::ZERO).unwrap(), "lab-agent: ready");
    }

    #[test]
    fn lines_that_come_again_are_told_apart() {
        let (_folder, log) = log();
        log.append(b"login: 1\nother\nlogin: 2\n");
        assert_eq!(log.wait_line("login", 2, Duration::ZERO).unwrap(), "login: 2");
        assert_eq!(log.wait_line("login", 3, Duration::ZERO), Err(NoLine::TimedOut));
    }

    #[test]
    fn the_end_wakes_whoever_waits() {
        let (_folder, log) = log();
        let writer = Arc::clone(&log);
        let writing = thread::spawn(move || {
            writer.append(b"last words");
            writer.end();
        });
        assert_eq!(log.wait_line("never said", 1, Duration::from_secs(60)), Err(NoLine::Ended));
        assert_eq!(log.wait_line("last", 1, Duration::ZERO).unwrap(), "last words");
        writing.join().unwrap();
    }

    #[test]
    fn old_bytes_give_way_to_new_ones() {
        let (_folder, log) = log();
        log.append(&vec![b'a'; LOG_BYTES_MAX]);
        log.append(b"\nnewest\n");
        assert_eq!(log.content().len(), LOG_BYTES_MAX);
        assert!(log.tail().ends_with("newest"));
    }
}
