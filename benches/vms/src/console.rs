//! The guest's console, read from the pipe that is its VMM's standard output.

use std::io::Read;
use std::process::ChildStdout;
use std::time::Instant;

use anyhow::{Result, bail};
use rustix::event::{PollFd, PollFlags, poll};

use crate::limits::{CONSOLE_BYTES_MAX, NOTICE};
use crate::resp::timespec;
use crate::stop::Stop;

/// What the guest has said, and how it said it.
#[derive(Debug)]
pub(crate) struct Console {
    pipe: ChildStdout,
    /// Not yet looked at.
    rest: Vec<u8>,
}

impl Console {
    pub(crate) fn new(pipe: ChildStdout) -> Self {
        Self { pipe, rest: Vec::new() }
    }

    /// Waits for the guest's first byte; when it was here.
    pub(crate) fn first_byte(&mut self, deadline: Instant, stop: &Stop) -> Result<Instant> {
        self.wait(deadline, stop)?;
        let came = Instant::now();
        self.take()?;
        Ok(came)
    }

    /// Waits for a line in which `wanted` finds something.
    pub(crate) fn find<T>(
        &mut self,
        deadline: Instant,
        stop: &Stop,
        wanted: impl Fn(&str) -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            while let Some(line) = next_line(&mut self.rest) {
                if line.contains("native-guest: panic:") {
                    bail!("the guest said {line}");
                }
                if let Some(found) = wanted(&line)? {
                    return Ok(found);
                }
            }
            self.wait(deadline, stop)?;
            self.take()?;
        }
    }

    fn wait(&self, deadline: Instant, stop: &Stop) -> Result<()> {
        loop {
            stop.check()?;
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(NOTICE))) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= deadline {
                bail!("the guest's console stayed silent for too long");
            }
        }
    }

    fn take(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        match self.pipe.read(&mut buffer)? {
            0 => bail!("the VMM has ended"),
            n if self.rest.len() + n > CONSOLE_BYTES_MAX => bail!("the guest's console has no line ends"),
            n => self.rest.extend_from_slice(&buffer[..n]),
        }
        Ok(())
    }
}

/// Takes a whole line off the front.
fn next_line(rest: &mut Vec<u8>) -> Option<String> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let line: Vec<u8> = rest.drain(..=end).collect();
    Some(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole() {
        let mut rest = b"one\r\ntwo\nthr".to_vec();
        assert_eq!(next_line(&mut rest).as_deref(), Some("one"));
        assert_eq!(next_line(&mut rest).as_deref(), Some("two"));
        assert_eq!(next_line(&mut rest), None);
        assert_eq!(rest, b"thr");
    }
}
