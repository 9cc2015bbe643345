//! Running outside programs: one place that says which command failed and what it said, and that ends it when nobody wants
//! its work any more.

use std::collections::VecDeque;
use std::env;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use rustix::process::{Pid, Signal};

use crate::limits::{KILL_AFTER, STOP_CHECK, TOOL_TAIL_LINES};
use crate::{ImageError, Observer};

/// A program and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Name of the program, looked up in PATH and the system folders.
    pub program: &'static str,
    /// Debian package that brings it.
    pub package: &'static str,
}

/// What building a disk image needs beside what any Debian has.
pub const DISK_TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "debugfs", package: "e2fsprogs" },
    Tool { program: "e2fsck", package: "e2fsprogs" },
    Tool { program: "mount", package: "mount" },
    Tool { program: "mountpoint", package: "util-linux" },
    Tool { program: "unshare", package: "util-linux" },
];

/// Checks that all `tools` are there.
///
/// # Errors
/// [`ImageError::Missing`]: one line that names every missing program and the command that installs them.
pub fn require(tools: &[Tool]) -> Result<(), ImageError> {
    let missing: Vec<_> = tools.iter().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<_> = missing.iter().map(|tool| tool.program).collect();
    let mut packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    Err(ImageError::Missing(format!(
        "{}; install with: apt-get install -y --no-install-recommends {}",
        programs.join(", "),
        packages.join(" ")
    )))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A command for a program that a user's PATH may lack; without it, starting the command will say so.
pub(crate) fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

/// Runs a short command to its end and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String, ImageError> {
    let line = command_line(command);
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| ImageError::Start { command: line.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ImageError::Command { command: line, status: output.status.to_string(), stderr })
}

/// What a watched command said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    /// The last lines only.
    pub(crate) stderr: VecDeque<String>,
}

/// Runs a long command to its end. It and its children are killed once the observer wants no more; every line on its standard
/// error is passed to `heard` as it comes.
pub(crate) fn run_watched(
    command: &mut Command,
    observer: &dyn Observer,
    heard: impl Fn(&str),
) -> Result<Said, ImageError> {
    let line = command_line(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = command.process_group(0).spawn();
    let child = started.map_err(|source| ImageError::Start { command: line.clone(), source })?;
    let mut group = Group { child, ended: false };
    let said = group.listen(observer, heard)?;
    let status = group.wait().map_err(|source| ImageError::Start { command: line.clone(), source })?;
    if status.success() {
        return Ok(said);
    }
    let stderr = Vec::from(said.stderr).join("\n").trim().to_owned();
    Err(ImageError::Command { command: line, status: status.to_string(), stderr })
}

/// A child with all it started; none of them outlives this value.
struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    fn listen(&mut self, observer: &dyn Observer, heard: impl Fn(&str)) -> Result<Said, ImageError> {
        let (lines, incoming) = mpsc::channel();
        let stderr = self.child.stderr.take();
        thread::spawn(move || {
            let reader = stderr.map(BufReader::new).into_iter();
            reader
                .flat_map(|reader| reader.split(b'\n'))
                .map_while(Result::ok)
                .all(|line| lines.send(line).is_ok())
        });
        let stdout = self.child.stdout.take();
        let stdout = thread::spawn(move || {
            let mut text = Vec::new();
            stdout.map(|mut pipe| pipe.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut said = Said::default();
        loop {
            match incoming.recv_timeout(STOP_CHECK) {
                Ok(line) => said.hear(&String::from_utf8_lossy(&line), &heard),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if observer.stopped() {
                return Err(ImageError::Interrupted);
            }
        }
        said.stdout = stdout.join().unwrap_or_default();
        Ok(said)
    }

    fn wait(&mut self) -> std::io::Result<std::process::ExitStatus> {
        let status = self.child.wait();
        self.ended = true;
        status
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // A group that is gone already is what is wanted.
        let _ = pid.map(|pid| rustix::process::kill_process_group(pid, signal));
    }
}

impl Drop for Group {
    /// First the polite way: mmdebstrap tidies up behind itself.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.signal(Signal::TERM);
        let deadline = std::time::Instant::now() + KILL_AFTER;
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            thread::sleep(STOP_CHECK);
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Said {
    fn hear(&mut self, line: &str, heard: &impl Fn(&str)) {
        heard(line);
        if self.stderr.len() == TOOL_TAIL_LINES {
            self.stderr.pop_front();
        }
        self.stderr.push_back(line.to_owned());
    }
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::observer::Unwatched;

    #[test]
    fn a_failing_command_is_quoted_with_its_words() {
        let error = run(Command::new("ls").arg("/no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("ls /no/such/folder") && error.contains("cannot access"), "{error}");
    }

    #[test]
    fn everything_missing_is_told_in_one_line() {
        let tools = [
            Tool { program: "no-such-program", package: "one" },
            Tool { program: "sh", package: "dash" },
            Tool { program: "nor-this", package: "two" },
        ];
        let line = require(&tools).unwrap_err().to_string();
        assert!(line.contains("no-such-program, nor-this") && line.ends_with("one two"), "{line}");
        assert_eq!(require(&tools[1..2]).ok(), Some(()));
    }

    #[test]
    fn lines_are_heard_as_they_come_and_the_output_is_kept() {
        let heard = RefCell::new(Vec::new());
        let mut script = Command::new("sh");
        script.args(["-c", "echo one >&2; echo out; echo two >&2"]);
        let said =
            run_watched(&mut script, &Unwatched, |line| heard.borrow_mut().push(line.to_owned())).unwrap();
        assert_eq!(
            (said.stdout.as_str(), heard.into_inner()),
            ("out\n", vec!["one".to_owned(), "two".to_owned()])
        );
    }

    /// Wants no more after the first line.
    #[derive(Default)]
    struct Impatient(Cell<bool>);

    impl Observer for Impatient {
        fn step(&self, _what: &str) {}
        fn stopped(&self) -> bool {
            self.0.get()
        }
    }

    #[test]
    fn nothing_of_a_stopped_command_goes_on() {
        let observer = Impatient::default();
        let child = RefCell::new(String::new());
        let mut script = Command::new("sh");
        script.args(["-c", "sleep 1000 & echo $! >&2; wait"]);
        let ended = run_watched(&mut script, &observer, |line| {
            line.clone_into(&mut child.borrow_mut());
            observer.0.set(true);
        });
        assert!(matches!(ended, Err(ImageError::Interrupted)));
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.borrow()));
        // Killed, it may not have been reaped by its new parent yet.
        assert!(stat.is_err() || stat.unwrap().contains(") Z "));
    }
}
