//! A protected guest: arbiter, passive and active on this machine, over its loopback.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bench_vms::wire::ip;
use bench_vms::{Stop, Wire};
use mycelium_ram::events::{Stamped, Stats};
use rhizomorph_link::{Identity, PeerKey};
use tempfile::TempDir;

use crate::limits::{LOOK, PATIENCE};
use crate::timeline;

const ARBITER: &str = "127.0.0.1:7600";
const PATHS: [&str; 2] = ["127.0.0.1:7700", "127.0.0.1:7701"];
/// The passive's own: what it does after a takeover is nobody's business here.
const SPARE_TAP: &str = "tap1";
/// Lines of a process' log that are quoted when something fails.
const LOG_LINES: usize = 6;

/// The programs of a pair.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) endophyte: PathBuf,
    pub(crate) mycelium: PathBuf,
    pub(crate) guest: PathBuf,
}

/// What is protected, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Protect<'a> {
    pub(crate) ram_mib: u32,
    /// Further words of the active's command line.
    pub(crate) options: &'a [&'a str],
}

/// One side's process.
#[derive(Debug)]
pub(crate) struct Side {
    process: Child,
    run_dir: PathBuf,
}

/// A protected guest, served at the wire's address. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) active: Side,
    pub(crate) passive: Side,
    arbiter: Child,
    _folder: TempDir,
    _spare: SpareTap,
}

#[derive(Debug)]
struct SpareTap;

impl SpareTap {
    fn lay() -> Result<Self> {
        ip(&format!("tuntap add {SPARE_TAP} mode tap"))?;
        let spare = Self;
        ip(&format!("link set {SPARE_TAP} up"))?;
        Ok(spare)
    }
}

impl Drop for SpareTap {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {SPARE_TAP}"));
    }
}

impl Pair {
    /// Starts everything and waits until the guest is protected.
    pub(crate) fn start(
        programs: &Programs,
        wire: &Wire,
        protect: &Protect<'_>,
        work: &Path,
        stop: &Stop,
    ) -> Result<Self> {
        let spare = SpareTap::lay()?;
        let folder = tempfile::tempdir_in(work).context("cannot make a folder for a pair")?;
        let dir = folder.path();
        let keys = Keys::make(dir)?;
        let arbiter = start_arbiter(programs, dir, &keys)?;
        let mut guard = Guard(vec![arbiter]);
        for (file, tap) in [("a.toml", wire.tap()), ("b.toml", SPARE_TAP)] {
            fs::write(dir.join(file), spec(programs, wire, tap, protect.ram_mib))?;
        }
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
                .arg(&run_dir);
            (command, run_dir)
        };
        let (mut command, run_dir) = common("passive", "b");
        command.args(["--allow", &keys.a.to_string()]);
        command.args(PATHS.iter().flat_map(|path| ["--listen", path]));
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
            _folder: folder,
            _spare: spare,
        };
        pair.until("the guest to be protected", stop, |pair| {
            timeline::is_protected(&pair.active.events()).then_some(())
        })?;
        Ok(pair)
    }

    /// Waits for something to be found.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        stop: &Stop,
        found: impl Fn(&Self) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
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
    pub(crate) fn stats(&mut self, stop: &Stop) -> Result<Stats> {
        let seen = timeline::newest_stats(&self.active.events()).map_or(0, |(at, _)| at);
        self.until("the active's figures", stop, |pair| {
            timeline::newest_stats(&pair.active.events()).filter(|(at, _)| *at > seen).map(|(_, stats)| stats)
        })
    }

    /// Kills the active; microseconds from the arbiter's decision for the passive to the guest's first instruction there.
    pub(crate) fn take_over(&mut self, stop: &Stop) -> Result<f64> {
        self.active.process.kill()?;
        self.active.process.wait()?;
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
    pub(crate) fn events(&self) -> Vec<Stamped> {
        timeline::read(&self.run_dir)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Processor time it has used, seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // After the name, which may hold anything but ends with the last parenthesis.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok());
        let (user, system) =
            ticks(11).zip(ticks(12)).with_context(|| format!("{path} is not as expected"))?;
        Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    fn last_words(&self) -> String {
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

fn spec(programs: &Programs, wire: &Wire, tap: &str, ram_mib: u32) -> String {
    format!(
        "name = \"bench\"\nvcpus = 1\nram_mib = {ram_mib}\nkernel = {:?}\ncmdline = {:?}\n\n[[net]]\ntap = {tap:?}\nmac = {:?}\n",
        programs.guest,
        wire.guest_words(),
        wire.mac()
    )
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
