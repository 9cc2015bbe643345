//! A process whose words are heard as they come, and which is not waited for without end.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// It said nothing for too long, and was killed.
    pub(crate) hung: bool,
}

/// Runs `command`; `hear` gets each line of its standard error. After `patience` of silence it is killed.
pub(crate) fn watch(command: &mut Command, patience: Duration, mut hear: impl FnMut(&str)) -> Result<Ended> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let lines = lines(child.stderr.take().context("its standard error is a pipe")?);
    let hung = loop {
        match lines.recv_timeout(patience) {
            Ok(line) => hear(&line),
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if hung {
        child.kill()?;
    }
    let status = reap(&mut child)?;
    Ok(Ended { status, hung })
}

fn lines(from: ChildStderr) -> Receiver<String> {
    let (tell, told) = channel();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        // libFuzzer shows inputs as they are, so this is not always UTF-8.
        while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
            if tell.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    told
}

fn reap(child: &mut Child) -> Result<ExitStatus> {
    child.wait().context("cannot wait for a process of our own")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_are_heard_and_the_status_is_told() {
        let mut heard = Vec::new();
        let ended = watch(&mut shell("echo a >&2; echo b >&2; exit 3"), Duration::MAX, |line| {
            heard.push(line.to_owned());
        });
        let ended = ended.unwrap();
        assert_eq!(
            (ended.status.code(), ended.hung, heard),
            (Some(3), false, vec!["a".to_owned(), "b".to_owned()])
        );
    }

    #[test]
    fn a_silent_process_is_killed() {
        let ended = watch(&mut shell("exec sleep 1000"), Duration::from_millis(50), |_| {}).unwrap();
        assert!(ended.hung && !ended.status.success());
    }
}
