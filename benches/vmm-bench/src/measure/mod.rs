//! The figures, a module for each group that is measured together.

mod blk;
mod memory;
mod net;
mod restore;
mod start;

use anyhow::{Context, Result};
use bench_figures::{Better, Goal, Measured, Spread};

use crate::bench::Bench;
use bench_vms::Vmm;

/// Figures measured together.
pub(crate) struct Group {
    /// The figures' names.
    pub(crate) names: &'static [&'static str],
    /// Measures them all.
    pub(crate) measure: fn(&Bench) -> Result<Vec<Measured>>,
}

/// In the order of a guest's life.
pub(crate) const GROUPS: [Group; 8] = [
    Group { names: &[start::NAME], measure: start::measure },
    Group { names: &[memory::NAME], measure: memory::measure },
    Group { names: &[net::NAME, net::LATENCY], measure: net::measure },
    Group { names: &[blk::READ_1.name], measure: |bench| blk::measure(bench, blk::READ_1) },
    Group { names: &[blk::READ_32.name], measure: |bench| blk::measure(bench, blk::READ_32) },
    Group { names: &[blk::WRITE_1.name], measure: |bench| blk::measure(bench, blk::WRITE_1) },
    Group { names: &[blk::WRITE_32.name], measure: |bench| blk::measure(bench, blk::WRITE_32) },
    Group { names: &[restore::NAME], measure: restore::measure },
];

/// Every figure's name.
pub(crate) const NAMES: [&str; 9] = [
    start::NAME,
    memory::NAME,
    net::NAME,
    net::LATENCY,
    blk::READ_1.name,
    blk::READ_32.name,
    blk::WRITE_1.name,
    blk::WRITE_32.name,
    restore::NAME,
];

/// What a figure is called and how it is judged.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    unit: &'static str,
    better: Better,
    goal: &'static str,
}

impl Shape {
    /// A figure from the values of each VMM, ours first, and the names of peers that are not here.
    fn of(self, vmms: &[Box<dyn Vmm>], values: Vec<Vec<f64>>, absent: Vec<String>) -> Result<Measured> {
        let spreads = values.into_iter().map(Spread::of).collect::<Option<Vec<_>>>();
        let mut spreads =
            spreads.with_context(|| format!("{}: nothing was measured", self.name))?.into_iter();
        let ours = spreads.next().context("our VMM had no turn")?;
        let names = vmms.iter().skip(1).map(|vmm| vmm.name().to_owned());
        let there = names.zip(spreads.map(Some));
        let peers = there.chain(absent.into_iter().map(|name| (name, None))).collect();
        let goal = Goal::parse(self.goal)?;
        Ok(Measured { name: self.name.to_owned(), unit: self.unit, better: self.better, ours, peers, goal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_vms::{Endophyte, Flavour, Qemu};

    fn vmms() -> Vec<Box<dyn Vmm>> {
        let qemu = Qemu::new("guest".as_ref(), "7.2.22", Flavour::VhostOff);
        vec![Box::new(Endophyte { program: "e".into(), guest: "g".into() }), Box::new(qemu)]
    }

    #[test]
    fn all_figures_have_a_group_and_a_goal_that_can_be_read() {
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|group| group.names).copied().collect();
        assert_eq!(grouped, NAMES);
        let shapes = [start::SHAPE, memory::SHAPE, net::SHAPE, net::LATENCY_SHAPE, restore::SHAPE];
        let blk = [blk::READ_1, blk::READ_32, blk::WRITE_1, blk::WRITE_32].map(blk::Work::shape);
        for shape in shapes.iter().chain(&blk) {
            Goal::parse(shape.goal).unwrap();
            assert!(NAMES.contains(&shape.name) && shape.name.starts_with("vmm."));
        }
    }

    #[test]
    fn values_become_spreads_of_their_vmm() {
        let values = vec![vec![1.0, 2.0, 3.0], vec![10.0]];
        let figure = start::SHAPE.of(&vmms(), values, vec!["other".into()]).unwrap().judge("r");
        assert!((figure.ours.p50 - 2.0).abs() < 1e-9);
        assert_eq!(figure.peer_name, "qemu-7.2 microvm vhost=off");
        assert_eq!(figure.peers["other"], None);
        assert!(figure.met);
    }

    #[test]
    fn no_values_are_no_figure() {
        assert!(start::SHAPE.of(&vmms(), vec![vec![1.0], vec![]], Vec::new()).is_err());
    }
}
