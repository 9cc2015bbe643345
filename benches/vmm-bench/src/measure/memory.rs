//! What a VMM's processes need beyond their guest's RAM: their proportional share (PSS) of all they map, less that of the memfd
//! that is guest RAM, while a guest with a network card has nothing to do.
//!
//! What the kernel keeps for a VM, page tables and KVM's own, is in no process' share and not counted.

use anyhow::{Context, Result};
use bench_figures::{Better, Measured};

use super::Shape;
use crate::bench::Bench;
use crate::limits::{IDLE, RAM_MIB};
use bench_vms::Wire;
use bench_vms::smaps;
use bench_vms::{Begin, Flavour, Setup, Vmm};

pub(super) const NAME: &str = "vmm.memory_beyond_guest_ram";
pub(super) const SHAPE: Shape =
    Shape { name: NAME, unit: "bytes", better: Better::Lower, goal: "<= 0.25 and p50 <= 8 MiB" };
const FLAVOURS: [Flavour; 1] = [Flavour::Plain];

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let vmms = bench.contenders(&FLAVOURS);
    let values = bench.in_turn(NAME, &vmms, |vmm| turn(bench, vmm))?;
    Ok(vec![SHAPE.of(&vmms, values, bench.absent(&FLAVOURS))?])
}

fn turn(bench: &Bench, vmm: &dyn Vmm) -> Result<f64> {
    let wire = Wire::lay()?;
    let setup = Setup { ram_mib: RAM_MIB, wire: Some(&wire), named_ram: true, ..Setup::default() };
    let mut running = bench.start(vmm, &setup, Begin::Boot)?;
    running.ready(&bench.stop)?;
    bench.stop.pause(IDLE)?;
    let shares = smaps::of_processes(&running.processes(), vmm.ram_memfd(), u64::from(RAM_MIB) << 20)?;
    let bytes = u32::try_from(shares.other).context("more than 4 GiB beyond guest RAM")?;
    Ok(f64::from(bytes))
}
