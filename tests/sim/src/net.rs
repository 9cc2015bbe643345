//! The links between nodes and to the arbiter: what is lost, doubled, late, out of order or cut.

use std::collections::BTreeMap;

use crate::clock::{MS, US};
use crate::rng::Rng;

/// How a kind of path behaves.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// One-way delay in nanoseconds, lowest and highest; messages overtake each other freely within it.
    pub delay: (u64, u64),
    /// Messages of 1000 that are lost. A reliable message is then late instead.
    pub loss_pm: u64,
    /// Messages of 1000 that arrive twice.
    pub double_pm: u64,
    /// Messages of 1000 that are late by [`Quality::spike`].
    pub spike_pm: u64,
    /// Lateness of the few, in nanoseconds.
    pub spike: u64,
}

impl Quality {
    /// A quiet local network.
    pub const LOCAL: Self =
        Self { delay: (30 * US, 300 * US), loss_pm: 0, double_pm: 0, spike_pm: 0, spike: 10 * MS };

    /// The delay of one message.
    pub fn delay(&self, rng: &mut Rng) -> u64 {
        let late = if rng.chance(self.spike_pm) { rng.below(self.spike) } else { 0 };
        rng.between(self.delay) + late
    }

    /// The same path without its faults.
    #[must_use]
    pub fn healed(self) -> Self {
        Self { loss_pm: 0, double_pm: 0, spike_pm: 0, ..self }
    }

    /// The longest round trip on it.
    #[must_use]
    pub fn round_trip(&self) -> u64 {
        let spike = if self.spike_pm > 0 { self.spike } else { 0 };
        2 * (self.delay.1 + spike)
    }
}

/// One direction between two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From node to node.
    Nodes(usize, usize),
    /// From a node to the arbiter.
    ToArbiter(usize),
    /// From the arbiter to a node.
    FromArbiter(usize),
    /// Between a node and the clients' switch.
    Clients(usize),
}

/// Which directions are cut. Faults may overlap, so each direction counts its cuts.
#[derive(Debug, Default)]
pub struct Cuts(BTreeMap<Way, u32>);

impl Cuts {
    /// Cuts a direction once more.
    pub fn cut(&mut self, way: Way) {
        *self.0.entry(way).or_default() += 1;
    }

    /// Takes one cut back.
    pub fn mend(&mut self, way: Way) {
        if let Some(count) = self.0.get_mut(&way) {
            *count = count.saturating_sub(1);
        }
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        self.0.clear();
    }

    /// Whether messages pass.
    #[must_use]
    pub fn passes(&self, way: Way) -> bool {
        self.0.get(&way).is_none_or(|cuts| *cuts == 0)
    }
}
