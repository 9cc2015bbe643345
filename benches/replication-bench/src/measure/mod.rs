//! The figures, a module for each group that is measured together.

mod idle;
mod kv;
mod lost_time;
mod promotion;
mod seed;
mod soak;

use anyhow::{Context, Result};
use bench_figures::{Better, Goal, Measured, Spread};

use crate::bench::Bench;

/// Figures measured together.
pub(crate) struct Group {
    /// Their names, or the beginnings of them.
    pub(crate) names: &'static [&'static str],
    /// Measures those that are wanted.
    pub(crate) measure: fn(&Bench) -> Result<Vec<Measured>>,
}

/// From what the guest loses to what the operator waits for.
pub(crate) const GROUPS: [Group; 9] = [
    Group { names: &["guest_lost_time"], measure: lost_time::measure },
    Group { names: &["kv_peak", "kv_unprotected"], measure: kv::peak },
    Group { names: &["added_delay"], measure: kv::delay },
    Group { names: &["wire_ratio"], measure: kv::wire_ratio },
    Group { names: &["idle_rate", "idle_cpu"], measure: idle::measure },
    Group { names: &["memory"], measure: idle::memory },
    Group { names: &["seed_rate"], measure: seed::measure },
    Group { names: &["promotion"], measure: promotion::measure },
    Group { names: &["false_takeovers"], measure: soak::measure },
];

/// What a figure is called and how it is judged.
#[derive(Clone, Debug)]
struct Shape {
    name: String,
    unit: &'static str,
    better: Better,
    goal: &'static str,
}

impl Shape {
    fn lower(name: &str, unit: &'static str, goal: &'static str) -> Self {
        Self { name: format!("replication.{name}"), unit, better: Better::Lower, goal }
    }

    fn higher(name: &str, unit: &'static str, goal: &'static str) -> Self {
        Self { better: Better::Higher, ..Self::lower(name, unit, goal) }
    }

    /// The figure from our values and those of each peer; `None` of one that is not installed.
    fn of(self, ours: Vec<f64>, peers: Vec<(&str, Option<Vec<f64>>)>) -> Result<Measured> {
        let ours = Spread::of(ours).with_context(|| format!("{}: nothing was measured", self.name))?;
        let peers = peers.into_iter().map(|(name, values)| (name.to_owned(), values.and_then(Spread::of)));
        Ok(Measured {
            name: self.name,
            unit: self.unit,
            better: self.better,
            ours,
            peers: peers.collect(),
            goal: Goal::parse(self.goal)?,
        })
    }
}
