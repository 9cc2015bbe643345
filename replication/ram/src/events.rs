//! The timeline: what happened to a protected VM, with the clock's reading.
//!
//! Writing happens on a thread of its own, so that a slow disk never holds up a heartbeat.

use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use hdrhistogram::Histogram;
use mycelium_ram_core::mode::Mode;
use mycelium_ram_core::pace::Pace;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::pause::PauseFigures;

/// Percentiles of a series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the values are at most this.
    pub p50: u64,
    /// 99 of 100 values are at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
    /// How many values there are.
    pub n: u64,
}

impl Spread {
    /// Reads a histogram.
    #[must_use]
    pub fn of(h: &Histogram<u64>) -> Self {
        Self { p50: h.value_at_quantile(0.5), p99: h.value_at_quantile(0.99), max: h.max(), n: h.len() }
    }
}

/// Running figures of the active side.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Epochs sealed.
    pub epochs: u64,
    /// Epochs committed: held by every replica in sync.
    pub committed: u64,
    /// Pages sent.
    pub pages: u64,
    /// Bytes of epochs handed to the link.
    pub bytes: u64,
    /// Guest stopped per epoch, in microseconds.
    pub pause_us: Spread,
    /// The same in its parts.
    #[serde(default)]
    pub pause: PauseFigures,
    /// Output held back, in microseconds.
    pub output_delay_us: Spread,
    /// Of it: until the end of its epoch is ordered, in microseconds, per epoch with output.
    #[serde(default)]
    pub wait_us: Spread,
    /// From the order to the sealed epoch, in microseconds, per epoch.
    #[serde(default)]
    pub cut_us: Spread,
    /// From the sealed epoch to the release of its output, in microseconds, per epoch.
    #[serde(default)]
    pub commit_us: Spread,
    /// Bytes waiting at the gate.
    pub gate_bytes: u64,
    /// What would be lost with this host, of which somebody may have heard: microseconds of the guest's time. Only in `async`.
    #[serde(default)]
    pub exposure_us: Option<u64>,
    /// Bytes of memory and disks that changed in sealed epochs which nobody has committed.
    #[serde(default)]
    pub exposure_bytes: u64,
    /// Epochs sealed and not acknowledged.
    pub lag: u64,
    /// Bytes of the disks that the replica which lacks most has not been sent yet.
    #[serde(default)]
    pub disk_left_bytes: u64,
    /// Bytes of all replicated disks.
    #[serde(default)]
    pub disk_bytes: u64,
}

/// Something worth a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields say what they are; DESIGN words are used")]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is made ten times a second, and boxed on its way"
)]
pub enum Event {
    /// The process is up.
    Started { role: String, vm: String, node: String, incarnation: String },
    /// Protection changed.
    Protection { state: String, reason: String, protected: bool },
    /// The guest's first copy is being sent.
    Seeding { pages: u64 },
    /// A replica is connected.
    Joined { replica: String },
    /// A replica is given up.
    Dropped { replica: String },
    /// The arbiter's record lists these replicas.
    InSync { replicas: Vec<String> },
    /// The guest stands still between epochs, by the operator's order or a policy; or goes on.
    Held { held: bool },
    /// Running figures of the active.
    Stats(Stats),
    /// Running figures of a replica.
    ReplicaStats { staged: u64, applied: u64, bytes: u64 },
    /// The arbiter's record lists this replica (or not any more).
    Listed { listed: bool },
    /// The active is suspected.
    Suspect { why: String, silent_us: u64, limit_us: u64 },
    /// The takeover swap is on its way.
    Taking { epoch: u64 },
    /// The arbiter has decided for this process.
    Won { generation: u64, epoch: u64 },
    /// The guest runs here now.
    Resumed { generation: u64, epoch: u64, elapsed_us: u64, replayed: u64, resent: u64 },
    /// The first output of this process left.
    FirstOutput { at_ns: u64 },
    /// A replica is out.
    Expelled { reason: String },
    /// The guest was stopped for good.
    Stopped { reason: String },
    /// Something failed and the VM goes on.
    Trouble { what: String },
    /// Epochs end at this pace from now on.
    Pace { pace: Pace },
    /// Output waits for its epoch or does not, from now on.
    Mode { mode: Mode },
    /// An epoch is held in this phase, as a rehearsal wants it.
    Drill { phase: String },
    /// The guest said something about itself (reset, power-off, panic), committed.
    Guest { what: String },
}

/// An event and when it happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stamped {
    /// Nanoseconds on CLOCK_BOOTTIME.
    pub t_ns: u64,
    /// Nanoseconds since 1970.
    pub wall_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Where events go. Cloning shares the destination.
#[derive(Clone, Debug)]
pub struct EventLog {
    to: Sender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Event(Box<Stamped>),
    /// Answer when everything before this has been written.
    Flush(SyncSender<()>),
}

impl EventLog {
    /// Hands each event to `sink`, on a thread of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mut sink: impl FnMut(&Stamped) + Send + 'static) -> std::io::Result<Self> {
        let (to, from) = channel();
        std::thread::Builder::new().name("events".into()).spawn(move || {
            for entry in from {
                match entry {
                    Entry::Event(event) => sink(&event),
                    Entry::Flush(done) => drop(done.send(())),
                }
            }
        })?;
        Ok(Self { to })
    }

    /// Keeps nothing.
    #[must_use]
    pub fn discard() -> Self {
        let (to, _) = channel();
        Self { to }
    }

    /// Notes an event now.
    pub fn note(&self, event: Event) {
        // The writer is gone only when nobody listens; the VM does not depend on its diary.
        let stamped = Stamped { t_ns: clock::now().0, wall_ns: clock::wall().0, event };
        let _ = self.to.send(Entry::Event(Box::new(stamped)));
    }

    /// Waits until everything noted so far is written, at most for `patience`: a process that ends must not swallow why.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if self.to.send(Entry::Flush(done)).is_ok() {
            let _ = written.recv_timeout(patience);
        }
    }
}
