//! What a demo proves, in figures.

use std::fmt::Write as _;

use mycelium_ram::events::{Spread, Stamped};
use serde::Serialize;

use crate::capture::Seen;
use crate::client::Findings;
use crate::clocks::{self, GuestClocks, Reading};
use crate::network::{Chronicle, NetworkVerdict};
use crate::options::{Fault, GuestKind};
use crate::takeover::{FailoverMs, Loss, Takeover};

/// Counts of the client's TCP connections.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Connections {
    /// Opened.
    pub total: usize,
    /// Worked to the end.
    pub survived: usize,
    /// Waited for a reply at the moment of the loss.
    pub outstanding_at_loss: u64,
}

/// The verdict. What speaks of one takeover speaks of the first.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// What ran in the VM.
    pub guest: GuestKind,
    /// On which KVM.
    pub kvm: String,
    /// What went wrong first.
    pub fault: Fault,
    /// In which phase of an epoch, if that was chosen.
    pub phase: Option<&'static str>,
    /// Hosts lost in turn.
    pub losses: usize,
    /// Repeat with this seed.
    pub seed: u64,
    /// Epochs committed by the lost host.
    pub epochs_committed: u64,
    /// Guest stopped per epoch.
    pub pause_us: Spread,
    /// Output held back.
    pub output_delay_us: Spread,
    /// Bytes on the replication paths, by the interfaces' counters.
    pub wire_bytes: u64,
    /// Requests acknowledged.
    pub acked_ops: u64,
    /// Of these after the takeover, and before the next loss.
    pub acked_ops_generation_2: u64,
    /// Acknowledged writes that are gone.
    pub lost_acked_ops: u64,
    /// Writes done twice.
    pub repeated_ops: u64,
    /// The client's connections.
    pub tcp_connections: Connections,
    /// The guest's digest of its store is the digest of the acknowledged writes.
    pub digest_match: bool,
    /// The guest's clocks over the takeover.
    pub guest_clocks: GuestClocks,
    /// First and last number of the guest's console counter as the last host has written it, without gap or repeat.
    pub console_ticks: Option<(u64, u64)>,
    /// The VM's generation after the takeover.
    pub generation: u64,
    /// How long it took.
    pub failover_ms: FailoverMs,
    /// Frames with the guest's address that left the lost host after the takeover.
    pub stale_frames: usize,
    /// Exit code of the lost host's process, where it lived to have one (6: deposed).
    pub deposed_exit: Option<i32>,
    /// What the network of nodes did, where there is one.
    #[serde(flatten)]
    pub network: Option<NetworkVerdict>,
    /// What is not as promised; empty when all is well.
    pub failures: Vec<String>,
}

/// What a run has gathered.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) guest: GuestKind,
    pub(crate) kvm: String,
    pub(crate) fault: Fault,
    pub(crate) phase: Option<&'static str>,
    pub(crate) seed: u64,
    /// The demo's beginning on CLOCK_BOOTTIME, nanoseconds.
    pub(crate) began: u64,
    /// The nodes' names and timelines.
    pub(crate) names: &'static [&'static str],
    pub(crate) nodes: Vec<Vec<Stamped>>,
    /// In the order of time; at least one.
    pub(crate) losses: Vec<Loss>,
    pub(crate) findings: Findings,
    pub(crate) clocks: Vec<Reading>,
    /// The guest's console, as the last host has written it.
    pub(crate) console: Vec<u8>,
    pub(crate) captures: Vec<Vec<Seen>>,
    /// Wall clock minus monotonic clock of this machine, nanoseconds.
    pub(crate) wall_offset: u64,
    pub(crate) wire_bytes: u64,
    pub(crate) exit_of_first: Option<i32>,
    /// What the nodes' daemons have said, where there are any.
    pub(crate) chronicle: Option<Chronicle>,
}

impl Evidence {
    /// The longest time between two replies on one connection, milliseconds, of those that `counts` takes by their begin
    /// and end.
    pub(crate) fn longest_silence(&self, counts: impl Fn(u64, u64) -> bool) -> f64 {
        let silences =
            self.findings.logs.iter().flat_map(|log| log.acks.windows(2)).map(|p| (p[0].1, p[1].1));
        let counted = silences.filter(|(from, to)| counts(*from, *to));
        counted.map(|(from, to)| (to - from) as f64 / 1e6).fold(f64::NAN, f64::max)
    }

    /// Draws the verdict; none without a loss.
    pub(crate) fn judge(self) -> Option<Verdict> {
        let first = Takeover::of(&self, 0)?;
        let stats = first.last_stats();
        let logs = &self.findings.logs;
        let survived = logs.iter().filter(|l| l.broken.is_none()).count();
        let mut verdict = Verdict {
            guest: self.guest,
            kvm: self.kvm.clone(),
            fault: self.fault,
            phase: self.phase,
            losses: self.losses.len(),
            seed: self.seed,
            epochs_committed: stats.committed,
            pause_us: stats.pause_us,
            output_delay_us: stats.output_delay_us,
            wire_bytes: self.wire_bytes,
            acked_ops: logs.iter().map(|l| l.acks.len() as u64).sum(),
            acked_ops_generation_2: first.acked(),
            lost_acked_ops: logs.iter().map(|l| l.lost).sum(),
            repeated_ops: logs.iter().map(|l| l.repeated).sum(),
            tcp_connections: Connections {
                total: logs.len(),
                survived,
                outstanding_at_loss: first.loss.outstanding,
            },
            digest_match: self.findings.digest_match,
            guest_clocks: first.guest_clocks(),
            console_ticks: clocks::ticks(&self.console).and_then(Result::ok),
            generation: first.generation(),
            failover_ms: first.failover(),
            stale_frames: first.stale_frames(),
            deposed_exit: self.exit_of_first,
            network: NetworkVerdict::of(&self),
            failures: Vec::new(),
        };
        verdict.failures = self.failures(&verdict);
        Some(verdict)
    }

    fn failures(&self, v: &Verdict) -> Vec<String> {
        let takeovers = (0..self.losses.len()).filter_map(|n| Takeover::of(self, n));
        let mut failures: Vec<String> = takeovers.flat_map(|takeover| takeover.failures()).collect();
        let mut demand = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        demand(v.lost_acked_ops == 0, format!("{} acknowledged writes are lost", v.lost_acked_ops));
        demand(v.repeated_ops == 0, format!("{} writes were done twice", v.repeated_ops));
        demand(
            v.digest_match,
            format!(
                "the digests differ: client {}, guest {}",
                self.findings.digests.0, self.findings.digests.1
            ),
        );
        demand(v.acked_ops > 1000, format!("only {} requests acknowledged", v.acked_ops));
        let c = v.tcp_connections;
        demand(
            c.survived == c.total,
            format!("{} of {} TCP connections broke", c.total - c.survived, c.total),
        );
        failures.extend(clocks::ticks(&self.console).and_then(Result::err));
        for log in &self.findings.logs {
            failures.extend(log.broken.iter().map(|why| format!("a connection broke: {why}")));
            failures.extend(log.complaints.iter().cloned());
        }
        failures
    }
}

impl Verdict {
    /// Whether everything is as promised.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
    }

    /// The verdict in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, words: String| {
            let _ = writeln!(text, "{name:<16}  {words}");
        };
        if let Some(network) = &self.network {
            network.nodes_in_words(&mut row);
        }
        row(
            "before the loss",
            format!(
                "{} epochs committed, guest stopped p50 {} us / p99 {} us per epoch,",
                self.epochs_committed, self.pause_us.p50, self.pause_us.p99
            ),
        );
        row(
            "",
            format!(
                "output held back p50 {} us / p99 {} us, {:.1} MB on the paths{}",
                self.output_delay_us.p50,
                self.output_delay_us.p99,
                self.wire_bytes as f64 / 1e6,
                if self.network.is_some() { " in all" } else { "" }
            ),
        );
        let first = if self.network.is_some() { "first takeover" } else { "takeover" };
        self.failover_ms.in_words(first, &mut row);
        if let Some(network) = &self.network {
            network.rest_in_words(&mut row);
        }
        let c = &self.tcp_connections;
        row(
            "client",
            format!(
                "{} of {} TCP connections survived ({} had a request outstanding)",
                c.survived, c.total, c.outstanding_at_loss
            ),
        );
        let after = match &self.network {
            Some(network) => format!(
                "{} after the first takeover, {} after the second",
                self.acked_ops_generation_2, network.second_takeover.acked_ops
            ),
            None => format!("{} of them after the takeover", self.acked_ops_generation_2),
        };
        row(
            "",
            format!(
                "{} requests acknowledged, {after}: {} lost, {} repeated",
                self.acked_ops, self.lost_acked_ops, self.repeated_ops
            ),
        );
        let is = if self.digest_match { "is" } else { "IS NOT" };
        row("", format!("the guest's digest {is} that of the acknowledged writes"));
        let ticks = self.console_ticks.map_or(String::new(), |(first, last)| {
            format!("; console ticks {first} to {last} without a gap")
        });
        row("guest's clocks", format!("{}{ticks}", self.guest_clocks.in_words()));
        if let Some(network) = &self.network {
            row("", format!("{} (second takeover)", network.second_takeover.guest_clocks.in_words()));
        }
        for failure in &self.failures {
            row("FAILED", failure.clone());
        }
        let good = if self.is_good() { "nothing lost, nothing repeated" } else { "NOT AS PROMISED" };
        row("verdict", good.to_owned());
        row("repeat", format!("with --seed {}: then losses fall at the same moments", self.seed));
        text.trim_end().to_owned()
    }
}
