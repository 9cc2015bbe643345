//! An `endophyte` process: started so that it outlives the daemon, or found again by the next one.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use endophyte_api::{InfoRequest, Role, VmClient, VmInfo};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::limits;

/// A process could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("cannot start {program}: {source}; is it installed beside this program or in the PATH?")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{0}")]
    Failed(String),
    #[error("the VM's process has not answered within {} s", limits::PROCESS_START.as_secs())]
    Slow,
}

/// A running process and the way to ask it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) started: u64,
    pub(crate) client: VmClient,
    /// What it said first.
    pub(crate) info: VmInfo,
    /// How it ended; `None` while it runs.
    pub(crate) ended: watch::Receiver<Option<String>>,
}

/// How to start one.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    pub(crate) args: Vec<String>,
    pub(crate) log: PathBuf,
    pub(crate) api: PathBuf,
}

impl Process {
    /// Starts a process and waits until it answers. `spawned` is told number and start time before that.
    pub(crate) async fn start(
        launch: Launch<'_>,
        spawned: impl FnOnce(u32, u64) -> io::Result<()>,
    ) -> Result<Self, ProcessError> {
        let fail = |source| ProcessError::Spawn { program: launch.program.to_owned(), source };
        let log = File::options().create(true).append(true).open(&launch.log).map_err(fail)?;
        let logged = log.metadata().map_or(0, |m| m.len());
        let mut vmm = Command::new(launch.program);
        vmm.args(&launch.args).arg("--api").arg(&launch.api);
        // A group of its own: what ends the daemon, Ctrl-C or a service manager, does not end VMs.
        vmm.stdin(Stdio::null()).stdout(log.try_clone().map_err(fail)?).stderr(log).process_group(0);
        let mut child = vmm.spawn().map_err(fail)?;
        let pid = child.id().unwrap_or(0);
        let started = start_time(pid).unwrap_or(0);
        if let Err(error) = spawned(pid, started) {
            // What is not written down nobody would find again.
            let _ = child.kill().await;
            return Err(ProcessError::Failed(format!("it cannot be written down that it runs: {error}")));
        }
        let (tell, ended) = watch::channel(None);
        let log = launch.log.clone();
        tokio::spawn(async move {
            let status = child.wait().await;
            let how = match status {
                Ok(status) if status.success() => "it ended well".to_owned(),
                Ok(status) => last_words(&log, logged, &status.to_string()),
                Err(error) => error.to_string(),
            };
            tell.send_replace(Some(how));
        });
        let (client, info) = answering(&launch.api, ended.clone(), is_up).await?;
        Ok(Self { pid, started, client, info, ended })
    }

    /// Finds a process again that an earlier daemon started; `None` when it is gone. One that lives and does not answer, a
    /// stopped one for example, is followed all the same: it may run a guest.
    pub(crate) async fn adopt(pid: u32, started: u64, api: &Path) -> Option<Self> {
        let handle = pidfd(pid)?;
        if start_time(pid) != Some(started) {
            return None;
        }
        let (tell, ended) = watch::channel(None);
        // A thread, because it may wait for years and must not hold up the runtime's end.
        std::thread::spawn(move || {
            while poll(&mut [PollFd::new(&handle, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
            tell.send_replace(Some(
                "ended; it was not this daemon's child, so its exit code is not known".into(),
            ));
        });
        let (client, info) = match timeout(limits::ADOPT, answering(api, ended.clone(), |_| true)).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(ProcessError::Failed(_))) => return None,
            _ => (endophyte_api::connect_later(api), VmInfo::default()),
        };
        Some(Self { pid, started, client, info, ended })
    }

    /// Finds the process that answers at a socket, whatever is known of it.
    pub(crate) async fn at(api: &Path) -> Option<Self> {
        let ask = async {
            let mut client = endophyte_api::connect(api).await.ok()?;
            Some(client.info(InfoRequest {}).await.ok()?.into_inner().pid)
        };
        let pid = timeout(limits::QUESTION, ask).await.ok().flatten()?;
        Self::adopt(pid, start_time(pid)?, api).await
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> String {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|how| how.clone()).unwrap_or_default()
    }

    /// Asks it to end, and kills it if it does not.
    pub(crate) async fn stop(&mut self) -> String {
        self.signal(Signal::TERM);
        if let Ok(how) = timeout(limits::PROCESS_STOP, self.end()).await {
            return how;
        }
        self.kill().await
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) -> String {
        self.signal(Signal::KILL);
        self.end().await
    }

    fn signal(&self, signal: Signal) {
        // By handle and start time: the number may be another process's by now.
        if let Some(handle) = pidfd(self.pid)
            && start_time(self.pid) == Some(self.started)
        {
            let _ = pidfd_send_signal(handle, signal);
        }
    }
}

/// Whether there is a VM: an active starts for as long as the arbiter has not let it, a passive until it listens.
fn is_up(info: &VmInfo) -> bool {
    if info.role() == Role::Passive { !info.ticket.is_empty() } else { info.state != "starting" }
}

fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// When a process started, in clock ticks since boot.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

async fn answering(
    api: &Path,
    mut ended: watch::Receiver<Option<String>>,
    is_up: impl Fn(&VmInfo) -> bool,
) -> Result<(VmClient, VmInfo), ProcessError> {
    let answers = async {
        loop {
            if let Ok(mut client) = endophyte_api::connect(api).await
                && let Ok(info) = client.info(InfoRequest {}).await
                && is_up(info.get_ref())
            {
                return (client, info.into_inner());
            }
            sleep(limits::PROCESS_LOOK).await;
        }
    };
    tokio::select! {
        client = timeout(limits::PROCESS_START, answers) => client.map_err(|_| ProcessError::Slow),
        how = ended.wait_for(Option::is_some) => {
            Err(ProcessError::Failed(how.ok().and_then(|how| how.clone()).unwrap_or_default()))
        }
    }
}

/// The end of what a process logged from `from` on, which is where it says why it ended.
fn last_words(log: &Path, from: u64, how: &str) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(limits::LAST_WORDS_BYTES))))?;
        let mut words = Vec::new();
        file.take(limits::LAST_WORDS_BYTES).read_to_end(&mut words)?;
        Ok(String::from_utf8_lossy(&words).into_owned())
    };
    let words = read().unwrap_or_default();
    let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
    last.map_or_else(|| how.to_owned(), |line| format!("{line} ({how})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_this_process_own() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "old trouble\nnew trouble\n\n").unwrap();
        assert_eq!(last_words(&log, 12, "exit status: 4"), "new trouble (exit status: 4)");
        assert_eq!(last_words(&log, 25, "exit status: 0"), "exit status: 0");
    }

    #[tokio::test]
    async fn a_program_that_fails_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            program: Path::new("/bin/sh"),
            args: vec!["-c".into(), "echo no good >&2; exit 3".into()],
            log: dir.path().join("log"),
            api: dir.path().join("sock"),
        };
        let mut seen = None;
        let spawned = |pid, started| {
            seen = Some((pid, started));
            Ok(())
        };
        let error = Process::start(launch, spawned).await.unwrap_err().to_string();
        assert!(error.contains("no good") && error.contains('3'), "{error}");
        assert!(seen.is_some_and(|(pid, _)| pid > 0));
    }
}
