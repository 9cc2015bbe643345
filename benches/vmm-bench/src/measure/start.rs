//! From the making of a process to the guest's first visible instruction: the first byte on its console, seen here through
//! the pipe that is the VMM's standard output.
//!
//! The machine has no device but its console. The guest says its first word when its own setup is done, so both VMMs' values hold
//! the same few milliseconds of guest.

use anyhow::Result;
use bench_figures::{Better, Measured};

use super::Shape;
use crate::bench::Bench;
use crate::limits::{RAM_MIB, STARTS_PER_TURN};
use bench_vms::{Begin, Flavour, Setup, Vmm};

pub(super) const NAME: &str = "vmm.start_to_first_instruction";
pub(super) const SHAPE: Shape = Shape { name: NAME, unit: "us", better: Better::Lower, goal: "<= 0.5" };
const FLAVOURS: [Flavour; 1] = [Flavour::Plain];

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let vmms = bench.contenders(&FLAVOURS);
    let turns = bench.in_turn(NAME, &vmms, |vmm| turn(bench, vmm))?;
    let values = turns.into_iter().map(|turns| turns.concat()).collect();
    Ok(vec![SHAPE.of(&vmms, values, bench.absent(&FLAVOURS))?])
}

/// Some starts, each after the end of the one before.
fn turn(bench: &Bench, vmm: &dyn Vmm) -> Result<Vec<f64>> {
    let setup = Setup { ram_mib: RAM_MIB, ..Setup::default() };
    let one = |_| {
        let mut running = bench.start(vmm, &setup, Begin::Boot)?;
        Ok(running.first_byte(&bench.stop)?.as_secs_f64() * 1e6)
    };
    (0..STARTS_PER_TURN).map(one).collect()
}
