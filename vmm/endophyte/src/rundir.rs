//! A VM's run folder: what an operator, a monitor and a test look at.
//!
//! - `events.jsonl`: the timeline, one JSON object per line, appended;
//! - `status.json`: how it is now, replaced atomically on every change and once a second;
//! - `metrics.prom`: the same for Prometheus' textfile collector; `endophyte_protected 0` is the one to alert on;
//! - `serial.log`: the guest's console, every byte at its own offset.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mycelium_ram::events::{Event, EventLog, Stamped, Stats};
use mycelium_ram_core::mode::Mode;
use mycelium_ram_core::pace::Pace;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const REFRESH: Duration = Duration::from_secs(1);

/// How a VM is doing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) vm: String,
    pub(crate) role: String,
    pub(crate) node: String,
    #[serde(default)]
    pub(crate) incarnation: String,
    pub(crate) generation: u64,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) protected: bool,
    /// The guest stands still, by the operator's order or a policy.
    #[serde(default)]
    pub(crate) held: bool,
    /// Replicas that the record lists, as members.
    #[serde(default)]
    pub(crate) in_sync: Vec<String>,
    /// How often epochs end, of an active.
    #[serde(default)]
    pub(crate) pace: Option<Pace>,
    /// Whether output waits for its epoch, of an active.
    #[serde(default)]
    pub(crate) mode: Option<Mode>,
    pub(crate) staged_epoch: u64,
    pub(crate) listed: bool,
    pub(crate) stats: Stats,
    pub(crate) last_trouble: Option<String>,
    /// Nanoseconds since 1970; older than a few seconds means the process is gone or stopped.
    pub(crate) updated_wall_ns: u64,
}

impl Status {
    fn take(&mut self, stamped: &Stamped) {
        self.updated_wall_ns = stamped.wall_ns;
        match &stamped.event {
            Event::Started { role, vm, node, incarnation } => {
                (self.role, self.vm, self.node) = (role.clone(), vm.clone(), node.clone());
                (self.incarnation, self.reason) = (incarnation.clone(), String::new());
                (self.listed, self.staged_epoch) = (false, 0);
                // An active starts for as long as the arbiter has not said that it is the one.
                self.state = if role == "active" { "starting" } else { "waiting" }.to_owned();
                self.generation = u64::from(role == "active");
            }
            Event::Protection { state, reason, protected } => {
                (self.state, self.reason, self.protected) = (state.clone(), reason.clone(), *protected);
            }
            Event::InSync { replicas } => self.in_sync.clone_from(replicas),
            Event::Held { held } => self.held = *held,
            Event::Pace { pace } => self.pace = Some(*pace),
            Event::Mode { mode } => self.mode = Some(*mode),
            Event::Stats(stats) => self.follow(*stats),
            Event::ReplicaStats { staged, .. } => self.staged_epoch = *staged,
            Event::Listed { listed } => {
                self.listed = *listed;
                self.state = if *listed { "in sync" } else { "waiting" }.to_owned();
            }
            Event::Resumed { generation, .. } => {
                (self.role, self.generation) = ("active".to_owned(), *generation);
                (self.listed, self.held) = (false, false);
            }
            Event::Stopped { reason } | Event::Expelled { reason } => {
                (self.state, self.reason, self.protected) = ("stopped".to_owned(), reason.clone(), false);
            }
            Event::Trouble { what } => self.last_trouble = Some(what.clone()),
            _ => {}
        }
    }

    fn follow(&mut self, stats: Stats) {
        self.stats = stats;
        // What takes longest before a VM is protected is a large disk.
        if self.state == "unprotected" && stats.disk_left_bytes > 0 {
            self.reason = format!(
                "a replica is receiving its first copy; {} of {} MiB of its disks are left",
                stats.disk_left_bytes.div_ceil(1 << 20),
                stats.disk_bytes.div_ceil(1 << 20)
            );
        }
    }

    fn metrics(&self) -> String {
        let labels = format!("{{vm=\"{}\",role=\"{}\"}}", self.vm, self.role);
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, value: u64| {
            text += &format!(
                "# HELP endophyte_{name} {help}\n# TYPE endophyte_{name} gauge\nendophyte_{name}{labels} {value}\n"
            );
        };
        gauge(
            "protected",
            "1 if a replica in sync could go on with the guest; alert on 0 for an active.",
            self.protected.into(),
        );
        gauge("replica_listed", "1 if this passive may take over.", self.listed.into());
        gauge("generation", "Takeovers of this VM, plus one.", self.generation);
        gauge("epochs_committed", "Newest epoch whose output has left.", self.stats.committed);
        gauge(
            "epochs_unacknowledged",
            "Epochs sealed and not held by every replica in sync.",
            self.stats.lag,
        );
        gauge(
            "pause_us_p99",
            "Guest stopped per epoch, 99th percentile, microseconds.",
            self.stats.pause_us.p99,
        );
        gauge(
            "output_delay_us_p99",
            "Output held back, 99th percentile, microseconds.",
            self.stats.output_delay_us.p99,
        );
        gauge(
            "exposure_us",
            "In async: the guest's time that would be lost with this host, microseconds.",
            self.stats.exposure_us.unwrap_or_default(),
        );
        gauge(
            "exposure_bytes",
            "Changed in epochs that have ended and are not committed.",
            self.stats.exposure_bytes,
        );
        gauge("gate_bytes", "Output waiting at the gate.", self.stats.gate_bytes);
        gauge(
            "disk_bytes_left",
            "Bytes of disks that a new replica has not been sent yet.",
            self.stats.disk_left_bytes,
        );
        gauge("replicated_bytes", "Bytes of epochs handed to the link.", self.stats.bytes);
        text
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// Makes the folder if need be.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the run folder {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// A folder somebody else keeps.
    pub(crate) fn existing(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Starts the timeline and keeps status and metrics with it, here and on the board that the API shows.
    pub(crate) fn events(&self, board: watch::Sender<Status>) -> Result<EventLog> {
        let path = self.0.join("events.jsonl");
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let mut log = log.with_context(|| format!("cannot open the timeline {}", path.display()))?;
        let (dir, mut status, mut written) = (self.clone(), board.borrow().clone(), None::<Instant>);
        Ok(EventLog::start(move |stamped| {
            append(&mut log, stamped);
            status.take(stamped);
            let figures = matches!(stamped.event, Event::Stats(_) | Event::ReplicaStats { .. });
            if !figures || written.is_none_or(|at| at.elapsed() >= REFRESH) {
                written = Some(Instant::now());
                dir.publish(&status);
                board.send_replace(status.clone());
            }
        })?)
    }

    fn publish(&self, status: &Status) {
        let json = serde_json::to_string_pretty(status).unwrap_or_default();
        for (name, text) in [("status.json", json), ("metrics.prom", status.metrics())] {
            let fresh = self.0.join(format!(".{name}.new"));
            // A full disk costs the status page, not the VM.
            let _ = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, self.0.join(name)));
        }
    }

    /// The console's log: every byte at the guest's own offset.
    pub(crate) fn serial_log(&self) -> Result<File> {
        let path = self.0.join("serial.log");
        let log = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path);
        log.with_context(|| format!("cannot open the console log {}", path.display()))
    }

    /// Reads the status of a VM of this host.
    pub(crate) fn status(&self) -> Result<Status> {
        let path = self.0.join("status.json");
        let text = fs::read(&path).with_context(|| {
            format!("no status at {}; is this the --run-dir of a protected VM?", path.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a status", path.display()))
    }
}

fn append(log: &mut File, stamped: &Stamped) {
    if let Ok(mut line) = serde_json::to_vec(stamped) {
        line.push(b'\n');
        let _ = log.write_all(&line);
    }
}

/// The status in words.
pub(crate) fn describe(status: &Status, age: Duration) -> String {
    let mut text =
        format!("{} as {}, generation {}: {}", status.vm, status.role, status.generation, status.state);
    if !status.reason.is_empty() {
        text += &format!(" ({})", status.reason);
    }
    if status.role == "active" {
        let s = &status.stats;
        text += &format!(
            "\n  epochs committed {}, waiting {}; pause p50 {} us, p99 {} us; output delay p50 {} us, p99 {} us",
            s.committed, s.lag, s.pause_us.p50, s.pause_us.p99, s.output_delay_us.p50, s.output_delay_us.p99
        );
    } else {
        text += &format!("\n  newest whole epoch {}", status.staged_epoch);
    }
    if let Some(trouble) = &status.last_trouble {
        text += &format!("\n  last trouble: {trouble}");
    }
    if age > REFRESH * 5 {
        text += &format!("\n  this is {} s old: the process is gone or stopped", age.as_secs());
    }
    text
}
