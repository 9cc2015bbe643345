//! One figure: ours, the peers', and what to make of them. The JSON form is the line that every bench prints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Goal, Spread};

/// Name of the peer where there is none.
const NO_PEER: &str = "none";

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// What was measured, not yet judged.
#[derive(Clone, Debug)]
pub struct Measured {
    /// `area.name` or `area.name.variant`.
    pub name: String,
    /// Of all values: us, ms, s, bytes, MiB, 1/s.
    pub unit: &'static str,
    /// Which way is good.
    pub better: Better,
    /// Our own values.
    pub ours: Spread,
    /// Each peer's name and values; `None` of one that is not installed.
    pub peers: Vec<(String, Option<Spread>)>,
    /// What is to be reached.
    pub goal: Goal,
}

/// A figure as it is published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `area.name` or `area.name.variant`.
    pub figure: String,
    /// Of all values.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// Our own values.
    pub ours: Spread,
    /// The peer compared with: the best of several.
    pub peer_name: String,
    /// Its values; `null` if it is not installed.
    pub peer: Option<Spread>,
    /// All peers, if there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<String, Option<Spread>>,
    /// Ours divided by the peer's, at p50.
    pub ratio: Option<f64>,
    /// What was to be reached.
    pub goal: Goal,
    /// Whether it was.
    pub met: bool,
    /// Which run of a bench this belongs to.
    pub run: String,
}

impl Measured {
    /// Compares with the best peer and judges by the goal. A peer that was sought and is not installed leaves nothing met.
    #[must_use]
    pub fn judge(self, run: &str) -> Figure {
        let (peer_name, peer) = self.best_peer();
        let ratio = peer.map(|peer| self.ours.p50 / peer.p50).filter(|ratio| ratio.is_finite());
        let complete = self.peers.is_empty() || peer.is_some();
        let met = complete && self.goal.met(&self.ours, ratio);
        let peers = if self.peers.len() > 1 { self.peers.into_iter().collect() } else { BTreeMap::new() };
        Figure {
            figure: self.name,
            unit: self.unit.to_owned(),
            better: self.better,
            ours: self.ours,
            peer_name,
            peer,
            peers,
            ratio,
            goal: self.goal,
            met,
            run: run.to_owned(),
        }
    }

    fn best_peer(&self) -> (String, Option<Spread>) {
        let there = self.peers.iter().filter_map(|(name, spread)| spread.map(|spread| (name, spread)));
        let best = match self.better {
            Better::Lower => there.min_by(|a, b| a.1.p50.total_cmp(&b.1.p50)),
            Better::Higher => there.max_by(|a, b| a.1.p50.total_cmp(&b.1.p50)),
        };
        match (best, self.peers.first()) {
            (Some((name, spread)), _) => (name.clone(), Some(spread)),
            (None, Some((name, _))) => (name.clone(), None),
            (None, None) => (NO_PEER.to_owned(), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(better: Better, goal: &str, peers: &[(&str, Option<f64>)]) -> Figure {
        let peers = peers.iter().map(|(name, p50)| ((*name).to_owned(), p50.map(Spread::single)));
        let measured = Measured {
            name: "vmm.x".into(),
            unit: "us",
            better,
            ours: Spread::of(vec![2.0, 1.0, 3.0]).unwrap(),
            peers: peers.collect(),
            goal: Goal::parse(goal).unwrap(),
        };
        measured.judge("r1")
    }

    #[test]
    fn one_peer_gives_the_line_that_is_promised() {
        let figure = measured(Better::Lower, "<= 0.5", &[("qemu-7.2", Some(8.0))]);
        assert_eq!(
            serde_json::to_string(&figure).unwrap(),
            r#"{"figure":"vmm.x","unit":"us","better":"lower","ours":{"p50":2.0,"p99":3.0,"max":3.0,"n":3},"peer_name":"qemu-7.2","peer":{"p50":8.0},"ratio":0.25,"goal":"<= 0.5","met":true,"run":"r1"}"#
        );
    }

    #[test]
    fn a_line_can_be_read_again() {
        let figure = measured(Better::Higher, "p50 >= 1 and >= 0.1", &[("a", Some(3.0)), ("b", None)]);
        let line = serde_json::to_string(&figure).unwrap();
        assert_eq!(serde_json::from_str::<Figure>(&line).unwrap(), figure);
    }

    #[test]
    fn the_best_of_several_peers_is_the_one_compared_with() {
        let peers = [("slow", Some(4.0)), ("fast", Some(8.0)), ("absent", None)];
        let figure = measured(Better::Higher, ">= 0.2", &peers);
        assert_eq!((figure.peer_name.as_str(), figure.ratio, figure.met), ("fast", Some(0.25), true));
        assert_eq!(figure.peers.len(), 3);
        assert_eq!(measured(Better::Lower, ">= 0.2", &peers).peer_name, "slow");
    }

    #[test]
    fn an_absent_peer_is_null_and_never_met() {
        for goal in ["<= 0.5", "p50 <= 100", "printed"] {
            let figure = measured(Better::Lower, goal, &[("qemu", None)]);
            assert!(!figure.met && figure.ratio.is_none());
            assert!(serde_json::to_string(&figure).unwrap().contains(r#""peer_name":"qemu","peer":null"#));
        }
    }

    #[test]
    fn without_any_peer_our_own_bounds_decide() {
        assert!(measured(Better::Lower, "p50 <= 2", &[]).met);
        assert!(!measured(Better::Lower, "p50 <= 1", &[]).met);
    }
}
