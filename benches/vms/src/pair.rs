//! A protected guest: arbiter, passive and active on this machine, over its loopback.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use mycelium_ram::events::{Stamped, Stats};
use rhizomorph_link::{Identity, PeerKey};
use tempfile::TempDir;

use crate::limits::{LOOK, PAIR_PATIENCE};
use crate::process;
use crate::stop::Stop;
use crate::timeline;

const ARBITER: &str = "127.0.0.1:7600";
const PATHS: [&str; 2] = ["127.0.0.1:7700", "127.0.0.1:7701"];
/// Lines of a process' log that are quoted when something fails.
const LOG_LINES: usize = 6;

/// The programs of a pair.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The VMM.
    pub endophyte: PathBuf,
    /// For the arbiter.
    pub mycelium: PathBuf,
}

/// What is protected, and how.
#[derive(Clone, Debug, Default)]
pub struct Protect<'a> {
    /// Spec of the VM as the active has it.
    pub active_spec: &'a str,
    /// The same VM as the passive has it.
    pub passive_spec: &'a str,
    /// Further words of the active's command line.
    pub options: &'a [&'a str],
    /// Further words of both command lines.
    pub both: &'a [&'a str],
}

/// One side's process.
#[derive(Debug)]
pub struct Side {
    process: Child,
    run_dir: PathBuf,
}

/// A protected guest, served at the wire's address. It ends when this is dropped.
#[derive(Debug)]
pub struct Pair {
    /// Where the guest runs at first.
    pub active: Side,
    /// Where it may go on.
    pub passive: Side,
    arbiter: Child,
    /// How the passive was started.
    passive_words: Vec<OsString>,
    endophyte: PathBuf,
    _folder: TempDir,
}

impl Pair {
    /// Starts everything and waits until the guest is protected.
    pub fn start(programs: &Programs, protect: &Protect<'_>, work: &Path, stop: &Stop) -> Result<Self> {
        let folder = tempfile::tempdir_in(work).context("cannot make a folder for a pair")?;
        let dir = folder.path();
        let keys = Keys::make(dir)?;
        let arbiter = start_arbiter(programs, dir, &keys)?;
        let mut guard = Guard(vec![arbiter]);
        fs::write(dir.join("a.toml"), protect.active_spec)?;
        fs::write(dir.join("b.toml"), protect.passive_spec)?;
        let common = |role: &str, name: &str| {
            let run_dir = dir.join(name);
            let mut command = Command::new(&programs.endophyte);
            command
                .arg(role)
                .arg("--spec")
                .arg(dir.join(format!("{name}.toml")))
                .arg("--key")
                .arg(dir.join(format!("{name}.key")))
                .args(["--arbiter", &format!("{}@{ARBITER}", keys.arbiter), "--run-dir"])
                .arg(&run_dir)
                .args(protect.both);
            (command, run_dir)
        };
        let (mut command, run_dir) = common("passive", "b");
        command.args(["--allow", &keys.a.to_string()]);
        command.args(PATHS.iter().flat_map(|path| ["--listen", path]));
        let passive_words = command.get_args().map(ToOwned::to_owned).collect();
        guard.0.push(spawn(command, &run_dir)?);
        let passive_dir = run_dir;
        let (mut command, run_dir) = common("active", "a");
        command.args(["--replica", &format!("{}@{}", keys.b, PATHS.join(","))]).args(protect.options);
        guard.0.push(spawn(command, &run_dir)?);
        let mut started = std::mem::take(&mut guard.0).into_iter();
        let (Some(arbiter), Some(passive), Some(active)) = (started.next(), started.next(), started.next())
        else {
            bail!("a pair is three processes");
        };
        let mut pair = Self {
            active: Side { process: active, run_dir },
            passive: Side { process: passive, run_dir: passive_dir },
            arbiter,
            passive_words,
            endophyte: programs.endophyte.clone(),
            _folder: folder,
        };
        pair.until("the guest to be protected", stop, |pair| {
            timeline::is_protected(&pair.active.events()).then_some(())
        })?;
        Ok(pair)
    }

    /// Waits for something to be found.
    pub fn until<T>(&mut self, what: &str, stop: &Stop, found: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PAIR_PATIENCE;
        loop {
            stop.check()?;
            if let Some(found) = found(self) {
                return Ok(found);
            }
            if Instant::now() > deadline || self.active.has_ended() && self.passive.has_ended() {
                bail!(
                    "waited for {what}; the active said: {}; the passive said: {}",
                    self.active.last_words(),
                    self.passive.last_words()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The active's figures from now on: those noted next.
    pub fn stats(&mut self, stop: &Stop) -> Result<Stats> {
        let seen = timeline::newest_stats(&self.active.events()).map_or(0, |(at, _)| at);
        self.until("the active's figures", stop, |pair| {
            timeline::newest_stats(&pair.active.events()).filter(|(at, _)| *at > seen).map(|(_, stats)| stats)
        })
    }

    /// Kills the passive and starts another one, which the active has to send everything; does not wait for that.
    pub fn renew_passive(&mut self, stop: &Stop) -> Result<()> {
        self.passive.lose()?;
        self.until("the replica to be given up", stop, |pair| {
            (!timeline::is_protected(&pair.active.events())).then_some(())
        })?;
        let mut command = Command::new(&self.endophyte);
        command.args(&self.passive_words);
        self.passive.process = spawn(command, &self.passive.run_dir)?;
        Ok(())
    }

    /// Kills the active; microseconds from the arbiter's decision for the passive to the guest's first instruction there.
    pub fn take_over(&mut self, stop: &Stop) -> Result<f64> {
        self.active.lose()?;
        self.until("the passive to take over", stop, |pair| timeline::promotion_us(&pair.passive.events()))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Reaped by the same call that waits; they may have ended already.
        for process in [&mut self.active.process, &mut self.passive.process, &mut self.arbiter] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Side {
    /// Kills it, and waits until nothing of it is left.
    pub fn lose(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// What it has noted so far.
    pub fn events(&self) -> Vec<Stamped> {
        timeline::read(&self.run_dir)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Processor time it has used, seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.pid())
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.run_dir.with_extension("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join(" / ")
    }
}

/// Processes that end unless they are taken out.
struct Guard(Vec<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Keys {
    arbiter: PeerKey,
    a: PeerKey,
    b: PeerKey,
}

impl Keys {
    fn make(dir: &Path) -> Result<Self> {
        let make = |name: &str| -> Result<PeerKey> {
            let identity = Identity::generate()?;
            identity.save(&dir.join(format!("{name}.key")))?;
            Ok(identity.peer_key())
        };
        Ok(Self { arbiter: make("arbiter")?, a: make("a")?, b: make("b")? })
    }
}

fn spawn(mut command: Command, run_dir: &Path) -> Result<Child> {
    fs::create_dir_all(run_dir)?;
    let log = File::create(run_dir.with_extension("log"))?;
    command.arg("--die-with-parent").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
}

fn start_arbiter(programs: &Programs, dir: &Path, keys: &Keys) -> Result<Child> {
    let mut arbiter = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(&programs.mycelium)
        .args(["arbiter", "run", "--listen", ARBITER, "--key"])
        .arg(dir.join("arbiter.key"))
        .arg("--dir")
        .arg(dir.join("arbiter"))
        .args(["--allow", &keys.a.to_string(), "--allow", &keys.b.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the arbiter")?;
    let stdout = arbiter.stdout.take().context("the arbiter has no output")?;
    let mut guard = Guard(vec![arbiter]);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    if !line.contains("listens") {
        bail!("the arbiter did not start: {line:?}");
    }
    guard.0.pop().context("the arbiter is gone")
}
