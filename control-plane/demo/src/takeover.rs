//! One takeover, in figures: what the timelines, the captures and the client say about the loss of one node.

use mycelium_ram::events::{Event, Stamped, Stats};
use serde::Serialize;

use crate::clocks::{self, GuestClocks, Reading};
use crate::options::GuestKind;
use crate::verdict::Evidence;

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

impl FailoverMs {
    /// Its rows of the verdict.
    pub(crate) fn in_words(&self, name: &str, row: &mut impl FnMut(&str, String)) {
        row(
            name,
            format!(
                "detect {:.1} + arbitrate {:.1} + resume {:.1} + first output {:.1} ms",
                self.detect, self.arbitrate, self.resume, self.first_output
            ),
        );
        row(
            "gap",
            format!("{:.1} ms on the wire, {:.1} ms for the client", self.server_gap, self.client_gap),
        );
    }
}

/// The loss of a node, and who took over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    /// The node that was lost, and the one that held its replica.
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// When, on CLOCK_BOOTTIME, nanoseconds.
    pub(crate) at: u64,
    /// Connections that waited for a reply then.
    pub(crate) outstanding: u64,
}

/// The evidence of one loss.
#[derive(Debug)]
pub(crate) struct Takeover<'e> {
    evidence: &'e Evidence,
    pub(crate) loss: Loss,
    /// The generation the loss must lead to.
    wanted: u64,
    /// The generation that was lost began then, and the next loss came then; nanoseconds.
    since: u64,
    until: u64,
}

/// When the first such event happened.
pub(crate) fn when(events: &[Stamped], wanted: impl Fn(&Event) -> bool) -> Option<u64> {
    events.iter().find(|e| wanted(&e.event)).map(|e| e.t_ns)
}

/// From one moment to another in milliseconds; NaN if one of them is not known.
pub(crate) fn ms(from: Option<u64>, to: Option<u64>) -> f64 {
    match (from, to) {
        (Some(from), Some(to)) => (to as f64 - from as f64) / 1e6,
        _ => f64::NAN,
    }
}

/// When a node had the guest running after a takeover.
pub(crate) fn resumed(events: &[Stamped]) -> Option<u64> {
    when(events, |e| matches!(e, Event::Resumed { .. }))
}

impl<'e> Takeover<'e> {
    /// Takeover number `n`.
    pub(crate) fn of(evidence: &'e Evidence, n: usize) -> Option<Self> {
        let loss = *evidence.losses.get(n)?;
        let before = n.checked_sub(1).and_then(|n| evidence.losses.get(n));
        let since = before.and_then(|loss| resumed(&evidence.nodes[loss.to])).unwrap_or(0);
        let until = evidence.losses.get(n + 1).map_or(u64::MAX, |loss| loss.at);
        Some(Self { evidence, loss, wanted: n as u64 + 2, since, until })
    }

    fn loser(&self) -> &'e [Stamped] {
        &self.evidence.nodes[self.loss.from]
    }

    /// The timeline of the node that took over.
    pub(crate) fn winner(&self) -> &'e [Stamped] {
        &self.evidence.nodes[self.loss.to]
    }

    /// When the new active had the guest running.
    pub(crate) fn resumed(&self) -> Option<u64> {
        resumed(self.winner())
    }

    fn won(&self) -> Option<u64> {
        when(self.winner(), |e| matches!(e, Event::Won { .. }))
    }

    /// The VM's generation after the takeover.
    pub(crate) fn generation(&self) -> u64 {
        let resumed = self.winner().iter().rev().find_map(|e| match e.event {
            Event::Resumed { generation, .. } => Some(generation),
            _ => None,
        });
        resumed.unwrap_or(self.wanted - 1)
    }

    /// The lost node's last figures.
    pub(crate) fn last_stats(&self) -> Stats {
        let before = self.loser().iter().filter(|e| e.t_ns <= self.loss.at);
        before
            .filter_map(|e| if let Event::Stats(s) = &e.event { Some(*s) } else { None })
            .next_back()
            .unwrap_or_default()
    }

    /// Requests acknowledged by the new generation.
    pub(crate) fn acked(&self) -> u64 {
        let Some(resumed) = self.resumed() else { return 0 };
        let acks = self.evidence.findings.logs.iter().flat_map(|log| &log.acks);
        acks.filter(|(_, at)| *at >= resumed && *at < self.until).count() as u64
    }

    pub(crate) fn failover(&self) -> FailoverMs {
        // The last suspicion before the takeover is the one that led to it.
        let taking = when(self.winner(), |e| matches!(e, Event::Taking { .. }));
        let suspects = self.winner().iter().filter(|e| matches!(e.event, Event::Suspect { .. }));
        let suspect = suspects.map(|e| e.t_ns).filter(|t| taking.is_none_or(|taking| *t <= taking)).max();
        // In a handover nobody is suspected: it is detected when the replica is asked to take over.
        let suspect = suspect.or(taking);
        let first = self.winner().iter().find_map(|e| match e.event {
            Event::FirstOutput { at_ns } => Some(at_ns),
            _ => None,
        });
        FailoverMs {
            detect: ms(Some(self.loss.at), suspect),
            arbitrate: ms(suspect, self.won()),
            resume: ms(self.won(), self.resumed()),
            first_output: ms(self.resumed(), first),
            server_gap: self.server_gap(),
            client_gap: self.client_gap(),
        }
    }

    fn server_gap(&self) -> f64 {
        let Evidence { captures, wall_offset, .. } = self.evidence;
        let lost_wall = self.loss.at + wall_offset;
        let spoke = |node: usize| captures[node].iter().filter(|seen| seen.ipv4).map(|seen| seen.wall_ns);
        let first_new = spoke(self.loss.to).find(|t| *t > lost_wall);
        let last_old = spoke(self.loss.from).filter(|t| first_new.is_none_or(|new| *t < new)).max();
        ms(last_old, first_new)
    }

    /// The longest time between two replies on one connection that ended after the loss and began before the guest was
    /// copied again, which has its own silence.
    fn client_gap(&self) -> f64 {
        let copied = self.copied_again().map_or(self.until, |at| at.min(self.until));
        self.evidence.longest_silence(|from, to| to > self.loss.at && from < copied)
    }

    /// When the new active began to copy the guest to a new replica.
    pub(crate) fn copied_again(&self) -> Option<u64> {
        let resumed = self.resumed()?;
        self.winner()
            .iter()
            .find(|e| e.t_ns > resumed && matches!(e.event, Event::Seeding { .. }))
            .map(|e| e.t_ns)
    }

    /// Frames with the guest's address that left the lost node after the takeover.
    pub(crate) fn stale_frames(&self) -> usize {
        let Some(resumed) = self.resumed() else { return 0 };
        let resumed_wall = resumed + self.evidence.wall_offset;
        self.evidence.captures[self.loss.from].iter().filter(|seen| seen.wall_ns > resumed_wall).count()
    }

    /// Frames with the guest's address that left the replica's node before the arbiter's word.
    fn early_frames(&self) -> usize {
        let won_wall = self.won().map_or(u64::MAX, |won| won + self.evidence.wall_offset);
        self.evidence.captures[self.loss.to].iter().filter(|seen| seen.wall_ns < won_wall).count()
    }

    fn readings(&self) -> Vec<Reading> {
        clocks::between(&self.evidence.clocks, self.since, self.until)
    }

    pub(crate) fn guest_clocks(&self) -> GuestClocks {
        GuestClocks::of(&self.readings(), self.loss.at, self.resumed(), self.evidence.wall_offset)
    }

    /// What is not as promised.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut demand = |holds: bool, what: String| {
            if !holds {
                failures.push(what);
            }
        };
        let names = self.evidence.names;
        let (from, to) = (names[self.loss.from], names[self.loss.to]);
        demand(
            self.resumed().is_none_or(|at| at >= self.loss.at),
            format!(
                "node {to} took over before node {from} was lost: a false alarm, is this machine very busy?"
            ),
        );
        let generation = self.generation();
        demand(
            generation == self.wanted,
            format!("the VM is in generation {generation} on node {to}, not {}", self.wanted),
        );
        let committed = self.last_stats().committed;
        demand(committed > 100, format!("only {committed} epochs committed before the loss of node {from}"));
        let acked = self.acked();
        demand(acked >= 500, format!("only {acked} requests acknowledged after the takeover by node {to}"));
        let stale = self.stale_frames();
        demand(stale == 0, format!("the lost node {from} sent {stale} frames after the takeover"));
        // An emulated host's clock is known to 10 ms only.
        if self.evidence.guest == GuestKind::Native {
            let early = self.early_frames();
            demand(early == 0, format!("node {to} sent {early} frames before the arbiter decided for it"));
        }
        failures.extend(self.guest_clocks().failures(clocks::apart_ms(&self.readings())));
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Findings, Log};
    use crate::options::Fault;

    const MS: u64 = 1_000_000;

    fn at(ms: u64, event: Event) -> Stamped {
        Stamped { t_ns: ms * MS, wall_ns: ms * MS, event }
    }

    fn resumed_as(generation: u64) -> Event {
        Event::Resumed { generation, epoch: 0, elapsed_us: 0, replayed: 0, resent: 0 }
    }

    /// Node 0 is lost at 100 ms, node 1 goes on at 110 and copies to node 2 from 200 on; it is lost at 300 ms, and node 2
    /// goes on at 320. One connection is answered at `acks`.
    fn evidence(acks: &[u64]) -> Evidence {
        let mut log = Log::default();
        log.acks = acks.iter().map(|at| (at * MS, at * MS)).collect();
        let digests = (String::new(), String::new());
        Evidence {
            guest: GuestKind::Native,
            kvm: String::new(),
            fault: Fault::Kill,
            phase: None,
            seed: 1,
            began: 0,
            names: &["a", "b", "c"],
            nodes: vec![
                Vec::new(),
                vec![at(110, resumed_as(2)), at(200, Event::Seeding { pages: 1 })],
                vec![at(320, resumed_as(3))],
            ],
            losses: vec![
                Loss { from: 0, to: 1, at: 100 * MS, outstanding: 1 },
                Loss { from: 1, to: 2, at: 300 * MS, outstanding: 1 },
            ],
            findings: Findings { logs: vec![log], digest_match: true, digests },
            clocks: Vec::new(),
            console: Vec::new(),
            captures: vec![Vec::new(); 3],
            wall_offset: 0,
            wire_bytes: 0,
            exit_of_first: None,
            chronicle: None,
        }
    }

    #[test]
    fn every_silence_and_reply_belongs_to_its_own_takeover() {
        // 60 ms before the first loss, 75 after it, 80 while the guest is copied, 35 over the second loss.
        let evidence = evidence(&[30, 90, 115, 190, 205, 285, 295, 330, 335]);
        let [first, second] = [0, 1].map(|n| Takeover::of(&evidence, n).unwrap());
        assert_eq!((first.generation(), second.generation()), (2, 3));
        assert_eq!((first.failover().client_gap, second.failover().client_gap), (75.0, 35.0));
        assert_eq!((first.acked(), second.acked()), (5, 2));
        assert!(Takeover::of(&evidence, 2).is_none());
    }

    #[test]
    fn a_frame_out_of_turn_is_named() {
        let mut evidence = evidence(&[90, 115]);
        let seen = |ms: u64| crate::capture::Seen { wall_ns: ms * MS, ipv4: true };
        evidence.nodes[1].insert(0, at(105, Event::Won { generation: 2, epoch: 0 }));
        evidence.captures = vec![vec![seen(99), seen(111)], vec![seen(104), seen(112)], Vec::new()];
        let failures = Takeover::of(&evidence, 0).unwrap().failures();
        let named = |words: &str| failures.iter().any(|failure| failure.contains(words));
        assert!(named("lost node a sent 1 frames") && named("node b sent 1 frames before"), "{failures:?}");
    }
}
