//! What a demo proves, in figures.

use std::fmt::Write as _;

use mycelium_ram::events::{Event, Spread, Stamped, Stats};
use serde::Serialize;

use crate::capture::Seen;
use crate::client::Findings;
use crate::clocks::{self, GuestClocks, Reading};
use crate::options::{Fault, GuestKind};

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

/// The takeover, in milliseconds; the parts from `detect` to `first_output` follow each other.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FailoverMs {
    /// From the loss to the suspicion.
    pub detect: f64,
    /// From the suspicion to the arbiter's word.
    pub arbitrate: f64,
    /// From the arbiter's word to the guest running.
    pub resume: f64,
    /// From the guest running to the first frame it sends.
    pub first_output: f64,
    /// Last frame of the old generation to first of the new, on the wire.
    pub server_gap: f64,
    /// Longest silence any connection saw around the loss.
    pub client_gap: f64,
}

/// The verdict.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// What ran in the VM.
    pub guest: GuestKind,
    /// On which KVM.
    pub kvm: String,
    /// How the host was lost.
    pub fault: Fault,
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
    /// Of these after the takeover.
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
    /// First and last number of the guest's console counter as the new host has written it, without gap or repeat.
    pub console_ticks: Option<(u64, u64)>,
    /// The VM's generation at the end.
    pub generation: u64,
    /// How long it took.
    pub failover_ms: FailoverMs,
    /// Frames with the guest's address that left the lost host after the takeover.
    pub stale_frames: usize,
    /// Exit code of the lost host's process, where it lived to have one (6: deposed).
    pub deposed_exit: Option<i32>,
    /// What is not as promised; empty when all is well.
    pub failures: Vec<String>,
}

/// What a run has gathered.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) guest: GuestKind,
    pub(crate) kvm: String,
    pub(crate) fault: Fault,
    pub(crate) seed: u64,
    pub(crate) lost_at: u64,
    pub(crate) outstanding: u64,
    pub(crate) a: Vec<Stamped>,
    pub(crate) b: Vec<Stamped>,
    pub(crate) findings: Findings,
    pub(crate) clocks: Vec<Reading>,
    /// The guest's console, as the new host has written it.
    pub(crate) console: Vec<u8>,
    pub(crate) captures: [Vec<Seen>; 2],
    /// Wall clock minus monotonic clock of this machine, nanoseconds.
    pub(crate) wall_offset: u64,
    pub(crate) wire_bytes: u64,
    pub(crate) exit_of_a: Option<i32>,
}

fn when(events: &[Stamped], wanted: impl Fn(&Event) -> bool) -> Option<u64> {
    events.iter().find(|e| wanted(&e.event)).map(|e| e.t_ns)
}

fn ms(from: Option<u64>, to: Option<u64>) -> f64 {
    match (from, to) {
        (Some(from), Some(to)) => (to as f64 - from as f64) / 1e6,
        _ => f64::NAN,
    }
}

impl Evidence {
    /// When the new active had the guest running.
    fn resumed(&self) -> Option<u64> {
        when(&self.b, |e| matches!(e, Event::Resumed { .. }))
    }

    fn last_stats(&self) -> Stats {
        let before = self.a.iter().filter(|e| e.t_ns <= self.lost_at);
        before
            .filter_map(|e| if let Event::Stats(s) = &e.event { Some(*s) } else { None })
            .next_back()
            .unwrap_or_default()
    }

    fn failover(&self) -> FailoverMs {
        // The last suspicion before the takeover is the one that led to it.
        let taking = when(&self.b, |e| matches!(e, Event::Taking { .. }));
        let suspects = self.b.iter().filter(|e| matches!(e.event, Event::Suspect { .. }));
        let suspect = suspects.map(|e| e.t_ns).filter(|t| taking.is_none_or(|taking| *t <= taking)).max();
        let won = when(&self.b, |e| matches!(e, Event::Won { .. }));
        let first = self.b.iter().find_map(|e| match e.event {
            Event::FirstOutput { at_ns } => Some(at_ns),
            _ => None,
        });
        FailoverMs {
            detect: ms(Some(self.lost_at), suspect),
            arbitrate: ms(suspect, won),
            resume: ms(won, self.resumed()),
            first_output: ms(self.resumed(), first),
            server_gap: self.server_gap(),
            client_gap: self.client_gap(),
        }
    }

    fn server_gap(&self) -> f64 {
        let lost_wall = self.lost_at + self.wall_offset;
        let spoke = |seen: &&Seen| seen.ipv4;
        let first_new = self.captures[1].iter().filter(spoke).map(|s| s.wall_ns).find(|t| *t > lost_wall);
        let before = |t: &u64| first_new.is_none_or(|new| *t < new);
        let last_old = self.captures[0].iter().filter(spoke).map(|s| s.wall_ns).filter(before).max();
        ms(last_old, first_new)
    }

    /// The longest time between two replies on one connection, if the loss or the takeover fell into it.
    fn client_gap(&self) -> f64 {
        let gaps = self.findings.logs.iter().flat_map(|log| {
            log.acks.windows(2).map(|pair| (pair[0].1, pair[1].1)).filter(|(_, to)| *to > self.lost_at)
        });
        gaps.map(|(from, to)| (to - from) as f64 / 1e6).fold(f64::NAN, f64::max)
    }

    fn stale_frames(&self) -> usize {
        let Some(resumed) = self.resumed() else { return 0 };
        let resumed_wall = resumed + self.wall_offset;
        self.captures[0].iter().filter(|seen| seen.wall_ns > resumed_wall).count()
    }

    /// Draws the verdict.
    pub(crate) fn judge(self) -> Verdict {
        let stats = self.last_stats();
        let resumed = self.resumed();
        let logs = &self.findings.logs;
        let acked = |from: Option<u64>| -> u64 {
            let Some(from) = from else { return 0 };
            logs.iter().flat_map(|l| &l.acks).filter(|(_, at)| *at >= from).count() as u64
        };
        let generation = self.b.iter().rev().find_map(|e| match e.event {
            Event::Resumed { generation, .. } => Some(generation),
            _ => None,
        });
        let survived = logs.iter().filter(|l| l.broken.is_none()).count();
        let mut verdict = Verdict {
            guest: self.guest,
            kvm: self.kvm.clone(),
            fault: self.fault,
            seed: self.seed,
            epochs_committed: stats.committed,
            pause_us: stats.pause_us,
            output_delay_us: stats.output_delay_us,
            wire_bytes: self.wire_bytes,
            acked_ops: acked(Some(0)),
            acked_ops_generation_2: acked(resumed),
            lost_acked_ops: logs.iter().map(|l| l.lost).sum(),
            repeated_ops: logs.iter().map(|l| l.repeated).sum(),
            tcp_connections: Connections {
                total: logs.len(),
                survived,
                outstanding_at_loss: self.outstanding,
            },
            digest_match: self.findings.digest_match,
            guest_clocks: GuestClocks::of(&self.clocks, self.lost_at, resumed, self.wall_offset),
            console_ticks: clocks::ticks(&self.console).and_then(Result::ok),
            generation: generation.unwrap_or(1),
            failover_ms: self.failover(),
            stale_frames: self.stale_frames(),
            deposed_exit: self.exit_of_a,
            failures: Vec::new(),
        };
        verdict.failures = self.failures(&verdict);
        verdict
    }

    fn failures(&self, v: &Verdict) -> Vec<String> {
        let mut failures = Vec::new();
        let mut demand = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        let early = self.resumed().is_some_and(|at| at < self.lost_at);
        demand(
            !early,
            "node B took over before node A was lost: a false alarm, is this machine very busy?".to_owned(),
        );
        demand(v.generation == 2, format!("the VM is in generation {}, not 2", v.generation));
        demand(
            v.epochs_committed > 100,
            format!("only {} epochs committed before the loss", v.epochs_committed),
        );
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
        demand(
            v.acked_ops_generation_2 >= 500,
            format!("only {} requests acknowledged after the takeover", v.acked_ops_generation_2),
        );
        let c = v.tcp_connections;
        demand(
            c.survived == c.total,
            format!("{} of {} TCP connections broke", c.total - c.survived, c.total),
        );
        demand(
            v.stale_frames == 0,
            format!("the lost host sent {} frames after the takeover", v.stale_frames),
        );
        failures.extend(v.guest_clocks.failures(clocks::apart_ms(&self.clocks)));
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
        let f = &self.failover_ms;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "before the loss   {} epochs committed, guest stopped p50 {} us / p99 {} us per epoch,",
            self.epochs_committed, self.pause_us.p50, self.pause_us.p99
        );
        let _ = writeln!(
            text,
            "                  output held back p50 {} us / p99 {} us, {:.1} MB on the paths",
            self.output_delay_us.p50,
            self.output_delay_us.p99,
            self.wire_bytes as f64 / 1e6
        );
        let _ = writeln!(
            text,
            "takeover          detect {:.1} + arbitrate {:.1} + resume {:.1} + first output {:.1} ms",
            f.detect, f.arbitrate, f.resume, f.first_output
        );
        let _ = writeln!(
            text,
            "gap               {:.1} ms on the wire, {:.1} ms for the client",
            f.server_gap, f.client_gap
        );
        let c = &self.tcp_connections;
        let _ = writeln!(
            text,
            "client            {} of {} TCP connections survived ({} had a request outstanding)",
            c.survived, c.total, c.outstanding_at_loss
        );
        let _ = writeln!(
            text,
            "                  {} requests acknowledged, {} of them after the takeover: {} lost, {} repeated",
            self.acked_ops, self.acked_ops_generation_2, self.lost_acked_ops, self.repeated_ops
        );
        let _ = writeln!(
            text,
            "                  the guest's digest {} that of the acknowledged writes",
            if self.digest_match { "is" } else { "IS NOT" }
        );
        let clocks = &self.guest_clocks;
        let _ = writeln!(
            text,
            "                  its clocks: back by {}, time missed {:.1} ms, wall clock moved by {:.1} ms{}",
            clocks.backward,
            clocks.missed_us.map_or(f64::NAN, |us| us.max(0.0) / 1e3),
            clocks.wall_shift_ms.unwrap_or(f64::NAN),
            self.console_ticks.map_or(String::new(), |(first, last)| format!(
                "; console ticks {first} to {last} without a gap"
            ))
        );
        for failure in &self.failures {
            let _ = writeln!(text, "FAILED            {failure}");
        }
        let _ = write!(
            text,
            "verdict           {}",
            if self.is_good() { "nothing lost, nothing repeated" } else { "NOT AS PROMISED" }
        );
        text
    }
}
