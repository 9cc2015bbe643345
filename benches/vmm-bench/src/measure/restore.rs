//! From the making of a process to the answer of a guest that was saved: 512 MiB of RAM of which 100 MiB were written.
//!
//! Each VMM saves its own guest to a file with its own means, once, and restores it in every turn. The guest answers over TCP with
//! what was stored before; to wait for a line on its console would add its timer's interval. Ours reads memory as the guest
//! touches it, QEMU all of it before the guest runs. The files are in the page cache, for both.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench_figures::{Better, Measured};

use super::Shape;
use crate::bench::Bench;
use crate::limits::{RESTORED_DIRTY_PAGES, RESTORED_RAM_MIB, RESTORES_PER_TURN};
use bench_vms::Wire;
use bench_vms::limits::PATIENCE;
use bench_vms::resp::Client;
use bench_vms::{Begin, Flavour, Setup, Vmm};

pub(super) const NAME: &str = "vmm.restore_512m_to_running";
pub(super) const SHAPE: Shape = Shape { name: NAME, unit: "us", better: Better::Lower, goal: "<= 0.3" };
const FLAVOURS: [Flavour; 1] = [Flavour::VhostOff];

const VALUE: &str = "stored-before";

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let vmms = bench.contenders(&FLAVOURS);
    for vmm in &vmms {
        bench.show(&format!("{NAME}: {} saves", vmm.name()));
        save(bench, vmm.as_ref()).with_context(|| vmm.name().to_owned())?;
    }
    let turns = bench.in_turn(NAME, &vmms, |vmm| turn(bench, vmm))?;
    let values = turns.into_iter().map(|turns| turns.concat()).collect();
    Ok(vec![SHAPE.of(&vmms, values, bench.absent(&FLAVOURS))?])
}

fn file(bench: &Bench, vmm: &dyn Vmm) -> PathBuf {
    bench.work().join(format!("{}.snapshot", vmm.name().replace(' ', "-")))
}

fn setup(wire: &Wire) -> Setup<'_> {
    Setup { ram_mib: RESTORED_RAM_MIB, wire: Some(wire), ..Setup::default() }
}

/// Boots a guest, has it write memory, and saves it.
fn save(bench: &Bench, vmm: &dyn Vmm) -> Result<()> {
    let wire = Wire::lay()?;
    let setup = Setup { saves_to: Some(bench.work()), ..setup(&wire) };
    let mut running = bench.start(vmm, &setup, Begin::Boot)?;
    running.ready(&bench.stop)?;
    let mut client = Client::knock(wire.server()?, &bench.stop)?;
    write_memory(bench, &mut client)?;
    client.ask(&["SET", "key", VALUE])?;
    drop(client);
    vmm.save(running, &file(bench, vmm), &bench.stop)
}

fn write_memory(bench: &Bench, client: &mut Client) -> Result<()> {
    client.ask(&["DIRTY", "contiguous", &RESTORED_DIRTY_PAGES.to_string()])?;
    let begun = std::time::Instant::now();
    while page_writes(&client.ask(&["DIRTYSTAT"])?)? < RESTORED_DIRTY_PAGES {
        ensure!(begun.elapsed() < PATIENCE, "the guest does not get its memory written");
        bench.stop.pause(Duration::from_millis(20))?;
    }
    client.ask(&["DIRTY", "STOP"])?;
    Ok(())
}

/// Of a reply of names and numbers in turn.
fn page_writes(reply: &[String]) -> Result<u64> {
    let place = reply.iter().position(|part| part == "page_writes").context("no page_writes")?;
    Ok(reply.get(place + 1).context("page_writes without a number")?.parse()?)
}

fn turn(bench: &Bench, vmm: &dyn Vmm) -> Result<Vec<f64>> {
    (0..RESTORES_PER_TURN).map(|_| restore(bench, vmm)).collect()
}

fn restore(bench: &Bench, vmm: &dyn Vmm) -> Result<f64> {
    let wire = Wire::lay()?;
    let saved = file(bench, vmm);
    let running = bench.start(vmm, &setup(&wire), Begin::Restore(&saved))?;
    let answered = Client::knock_until_answered(wire.server()?, &["GET", "key"], &bench.stop);
    let (mut client, reply) = running.explain(answered)?;
    let took = running.spawned().elapsed();
    ensure!(reply == [VALUE], "the restored guest answered {reply:?}");
    // Every page is as it was: a VMM that restores half a guest is fast.
    client.ask(&["DIRTY", "CHECK"])?;
    Ok(took.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_writes_are_found_by_their_name() {
        let reply = ["running", "1", "rounds", "0", "page_writes", "25600"].map(str::to_owned);
        assert_eq!(page_writes(&reply).unwrap(), 25_600);
        assert!(page_writes(&reply[..4]).is_err() && page_writes(&reply[..5]).is_err());
    }
}
