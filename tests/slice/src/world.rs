//! One test's world: a machine, a containerd in it, its CRI socket, and a look at what was there before.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::containerd::Containerd;
use crate::count::{Count, count};
use crate::cri::{Cri, Pod, PodSpec};
use crate::machine::{self, run_in};
use crate::{HANDLER, needs};

/// Guest memory of the tests' VMs, bytes.
pub const MEMORY: i64 = 64 << 20;
/// What is given up only after this.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// The world.
#[derive(Debug)]
pub struct World {
    /// The containerd.
    pub containerd: Containerd,
    /// kubelet's view.
    pub cri: Cri,
    dir: tempfile::TempDir,
    before: Count,
}

impl World {
    /// Makes it; `None` when this machine lacks something, which has been said.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn make() -> Result<Option<Self>> {
        let Some(programs) = needs::programs() else { return Ok(None) };
        machine::enter()?;
        let dir = tempfile::Builder::new().prefix("slice-").tempdir()?;
        let containerd = Containerd::start(dir.path(), &programs, "10.88.1.0/24")?;
        let cri = Cri::connect(&containerd.socket()).await?;
        // The first pod makes the bridge; it is there for good.
        let pod = cri.run_pod(&Self::spec_in(dir.path(), "first")).await?;
        cri.remove_pod(&pod).await?;
        let before = count(dir.path());
        Ok(Some(Self { containerd, cri, dir, before }))
    }

    fn spec_in(dir: &Path, name: &str) -> PodSpec {
        let log_dir = dir.join("logs").join(name).display().to_string();
        PodSpec { name: name.to_owned(), annotations: Vec::new(), handler: HANDLER.to_owned(), log_dir }
    }

    /// A pod of the runtime under test.
    #[must_use]
    pub fn spec(&self, name: &str) -> PodSpec {
        Self::spec_in(self.dir.path(), name)
    }

    /// What a pod's VM has said on its console, as kubelet's log file has it.
    #[must_use]
    pub fn log(&self, pod: &str) -> String {
        let path: PathBuf = self.dir.path().join("logs").join(pod).join("vm.log");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Waits until a pod's log has a word.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn log_has(&self, pod: &str, word: &str) -> Result<()> {
        eventually(&format!("{word:?} in the log of {pod}"), || self.log(pod).contains(word)).await
    }

    /// Asks a VM's store something, from another pod's network namespace.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn redis(&self, from: &Path, address: &str, words: &[&str]) -> Result<String> {
        let ask = [&["5", "redis-cli", "-h", address], words].concat();
        Ok(run_in(from, "timeout", &ask)?.trim().to_owned())
    }

    /// Waits until a VM's store answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn serves(&self, from: &Path, address: &str) -> Result<()> {
        let pongs = || self.redis(from, address, &["PING"]).is_ok_and(|reply| reply == "PONG");
        eventually(&format!("an answer from {address}"), pongs).await
    }

    /// A pod without a container: a place to be a client in.
    ///
    /// # Errors
    /// containerd's.
    pub async fn client(&self) -> Result<(Pod, PathBuf)> {
        let pod = self.cri.run_pod(&self.spec("client")).await?;
        let netns = self.cri.netns(&pod).await?;
        Ok((pod, netns))
    }

    /// Kills a process of a container by its program's name and its place in the bundle's path or its own arguments.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, program: &str, id: &str) -> Result<()> {
        let found = pids(program, id);
        let pid = found.first().with_context(|| format!("no {program} of {id}"))?.parse::<i32>()?;
        let pid = rustix::process::Pid::from_raw(pid).context("a process number")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }

    /// Waits until nothing is left that was not there before; fails with what is.
    ///
    /// # Errors
    /// When something stays.
    pub async fn is_clean(&self) -> Result<()> {
        remove_pod_cgroups();
        let mut left = String::new();
        let clean = eventually("everything gone", || {
            left = count(self.dir.path()).beyond(&self.before);
            left.is_empty()
        });
        let clean = clean.await;
        println!("before: {}", self.before.numbers());
        println!("after:  {}", count(self.dir.path()).numbers());
        clean.with_context(|| format!("left behind:\n{left}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        remove_pod_cgroups();
        if std::thread::panicking() || std::env::var_os("SLICE_LOG").is_some() {
            eprintln!("containerd's last words:\n{}", self.containerd.log());
        }
    }
}

/// kubelet's duty: the pods' own cgroups.
fn remove_pod_cgroups() {
    let script =
        "find /sys/fs/cgroup/*/endophyte-tests -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null; true";
    let _ = Command::new("sh").args(["-c", script]).status();
}

/// Processes of that program whose command line names `id`.
#[must_use]
pub fn pids(program: &str, id: &str) -> Vec<String> {
    let listed = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_one = |pid: &String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        words.first().is_some_and(|first| first.rsplit('/').next() == Some(program))
            && words.iter().any(|word| word.contains(id))
    };
    listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(is_one).collect()
}

/// Waits until something is so.
///
/// # Errors
/// When it is not in time.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
