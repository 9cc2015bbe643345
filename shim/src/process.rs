//! Processes by number: whether one is still the one that was meant, and its end.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How a task ended, and when.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at: Timestamp,
}

impl Exit {
    /// Now, with that status.
    pub(crate) fn now(status: u32) -> Self {
        Self { status, at: now() }
    }

    /// Now, as a shell would say it: 128 and the signal's number for a killed process.
    pub(crate) fn of(status: ExitStatus) -> Self {
        let number = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255);
        Self::now(number.unsigned_abs())
    }

    pub(crate) fn at(&self) -> MessageField<Timestamp> {
        MessageField::some(self.at.clone())
    }
}

/// The wall clock, as protobuf has it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

/// When a process started, in clock ticks since boot: with its number this names it for good.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may hold anything.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

/// Kills a process, if it still is the one that was meant, and waits until it is gone.
pub(crate) fn end(pid: u32, started: u64, patience: Duration) {
    let Some(pid_) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(handle) = pidfd_open(pid_, PidfdFlags::empty()) else { return };
    // With the handle open, a match means that the handle is that process, whatever happens next.
    if start_time(pid) != Some(started) {
        return;
    }
    let _ = kill_process(pid_, Signal::KILL);
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec::try_from(left).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_ended_only_if_it_is_the_one_meant() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        end(child.id(), started + 1, Duration::from_secs(5));
        assert!(child.try_wait().unwrap().is_none());
        end(child.id(), started, Duration::from_secs(5));
        let exit = Exit::of(child.wait().unwrap());
        assert_eq!(exit.status, 137);
    }

    #[test]
    fn a_number_without_a_process_is_nobody() {
        assert_eq!(start_time(u32::MAX), None);
        end(u32::MAX, 0, Duration::ZERO);
    }
}
