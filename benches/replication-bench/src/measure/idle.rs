//! A protected VM that does nothing: what it sends, what it costs each side's processor, and the memory of both processes beyond
//! guest RAM.

use anyhow::Result;
use bench_figures::Measured;
use bench_vms::{Pair, smaps};

use super::Shape;
use crate::bench::{Bench, Guarded};
use crate::limits::{IDLE_SECONDS, RAM_MIB, WARM_UP};

const PROTECT: Guarded<'static> = Guarded::PLAIN;
/// Of guest RAM, in both processes.
const RAM_MEMFD: &str = "endophyte-ram";

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    bench.show("idle");
    let (rate, cpu) = bench.protected(&PROTECT, |pair, _| {
        bench.stop.pause(WARM_UP)?;
        let cpu =
            |pair: &Pair| Ok::<_, anyhow::Error>([pair.active.cpu_seconds()?, pair.passive.cpu_seconds()?]);
        let (before, cpu_before) = (pair.stats(&bench.stop)?, cpu(pair)?);
        bench.stop.pause(std::time::Duration::from_secs(IDLE_SECONDS))?;
        let (after, cpu_after) = (pair.stats(&bench.stop)?, cpu(pair)?);
        let seconds = IDLE_SECONDS as f64;
        let shares =
            cpu_before.iter().zip(cpu_after).map(|(before, after)| (after - before) / seconds * 100.0);
        Ok(((after.bytes - before.bytes) as f64 / seconds, shares.collect::<Vec<f64>>()))
    })?;
    Ok(vec![
        Shape::lower("idle_rate", "bytes/s", "p50 <= 1000").of(vec![rate], Vec::new())?,
        Shape::lower("idle_cpu", "%", "max <= 1").of(cpu, Vec::new())?,
    ])
}

pub(super) fn memory(bench: &Bench) -> Result<Vec<Measured>> {
    bench.show("memory");
    let sides = bench.protected(&PROTECT, |pair, server| {
        let mut load = crate::load::Load::prepare(server)?;
        let shape = crate::load::Shape::Closed { connections: 8, pipeline: 1 };
        load.run(server, shape, bench.work_time(), &bench.stop)?;
        let ram = u64::from(RAM_MIB) << 20;
        let beyond = |pid| smaps::of_processes(&[pid], RAM_MEMFD, ram).map(|shares| shares.other as f64);
        Ok([("memory.active", beyond(pair.active.pid())?), ("memory.passive", beyond(pair.passive.pid())?)])
    })?;
    sides
        .into_iter()
        .map(|(name, bytes)| Shape::lower(name, "bytes", "printed").of(vec![bytes], Vec::new()))
        .collect()
}
