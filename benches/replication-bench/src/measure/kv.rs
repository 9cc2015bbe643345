//! The key-value store under load: `load.rs` says what the clients do.
//!
//! *Peak*: connections and pipeline are raised until nothing more is gained, protected, unprotected and on QEMU each for itself;
//! the best of the steps counts. *Delay*: what protection adds to the median latency of an unprotected guest, of one client that
//! waits for each reply, and of clients that come at half the rate that the protected guest can take of requests that come one by
//! one, whether they are answered or not. Both once more in `async`, where output does not wait for its epoch. *Wire
//! ratio*: bytes of epochs handed to the link, state and replies among them, for each byte of the pages that have changed.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bench_figures::Measured;
use bench_vms::Vmm;
use mycelium_ram::events::{Spread, Stats};

use super::Shape;
use crate::bench::{Bench, Guarded};
use crate::limits::WARM_UP;
use crate::load::{self, Load};

/// Bytes of a guest page.
const PAGE_BYTES: f64 = 4096.0;
/// Connections and requests under way on each, more and more.
const STEPS: [(usize, usize); 6] = [(8, 1), (32, 1), (32, 4), (32, 16), (100, 16), (100, 64)];
/// Connections with one request under way each: what comes one by one costs more than what comes in a row.
const SINGLE_STEPS: [(usize, usize); 2] = [(32, 1), (100, 1)];
/// Connections of an open load: more than are ever waiting.
const OPEN_CONNECTIONS: usize = 32;

/// A part's name, and where it stands.
type Part = (&'static str, fn(&Stats) -> Spread);

/// Where the delay goes: medians of the active's own figures, over the rounds.
const PARTS: [Part; 8] = [
    ("wait", |stats| stats.wait_us),
    ("cut", |stats| stats.cut_us),
    ("commit", |stats| stats.commit_us),
    ("pause", |stats| stats.pause.whole),
    ("pause_stop", |stats| stats.pause.stop),
    ("pause_log", |stats| stats.pause.log),
    ("pause_state", |stats| stats.pause.state),
    ("pause_copy", |stats| stats.pause.copy),
];

const PROTECT: Guarded<'static> = Guarded::PLAIN;
const ASYNC: Guarded<'static> = Guarded { options: &["--mode", "async"], ..Guarded::PLAIN };

pub(super) fn peak(bench: &Bench) -> Result<Vec<Measured>> {
    let qemu = bench.qemu();
    let (mut protected, mut unprotected, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let mut leading = Vec::new();
    for round in 1..=bench.options.rounds() {
        bench.show(&format!("kv_peak: round {round}, protected"));
        protected.push(bench.protected(&PROTECT, |_, server| best(bench, server, &STEPS))?);
        bench.show(&format!("kv_peak: round {round}, async"));
        leading.push(bench.protected(&ASYNC, |_, server| best(bench, server, &STEPS))?);
        bench.show(&format!("kv_peak: round {round}, unprotected"));
        unprotected.push(bench.unprotected(&bench.plain(), |server| best(bench, server, &STEPS))?);
        if let Some(qemu) = &qemu {
            bench.show(&format!("kv_peak: round {round}, {}", qemu.name()));
            theirs.push(bench.unprotected(qemu, |server| best(bench, server, &STEPS))?);
        }
    }
    let name = qemu.as_ref().map_or("qemu", |qemu| qemu.name());
    let theirs = qemu.is_some().then_some(theirs);
    Ok(vec![
        Shape::higher("kv_peak", "1/s", ">= 0.83")
            .of(protected, vec![("unprotected", Some(unprotected.clone()))])?,
        Shape::higher("kv_peak.async", "1/s", "printed")
            .of(leading, vec![("unprotected", Some(unprotected.clone()))])?,
        Shape::higher("kv_unprotected", "1/s", ">= 0.9").of(unprotected, vec![(name, theirs)])?,
    ])
}

fn best(bench: &Bench, server: SocketAddr, steps: &[(usize, usize)]) -> Result<f64> {
    let mut load = Load::prepare(server)?;
    let mut best: f64 = 0.0;
    for &(connections, pipeline) in steps {
        let shape = load::Shape::Closed { connections, pipeline };
        load.run(server, shape, WARM_UP, &bench.stop)?;
        best = best.max(load.run(server, shape, bench.work_time(), &bench.stop)?.per_second);
    }
    Ok(best)
}

pub(super) fn delay(bench: &Bench) -> Result<Vec<Measured>> {
    let one = load::Shape::Closed { connections: 1, pipeline: 1 };
    bench.show("added_delay: half of the peak");
    let peak = bench.protected(&PROTECT, |_, server| best(bench, server, &SINGLE_STEPS))?;
    let half = load::Shape::Open { connections: OPEN_CONNECTIONS, rate: peak / 2.0 };
    let mut figures = Vec::new();
    for (name, shape) in [("added_delay.one", one), ("added_delay.half", half)] {
        let (mut protected, mut unprotected, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut leading = Vec::new();
        for round in 1..=bench.options.rounds() {
            bench.show(&format!("{name}: round {round}"));
            let (latencies_us, stats) = bench.protected(&PROTECT, |pair, server| {
                let latencies_us = latencies(bench, server, shape)?;
                Ok((latencies_us, pair.stats(&bench.stop)?))
            })?;
            protected.extend(latencies_us);
            parts.push(stats);
            leading.extend(bench.protected(&ASYNC, |_, server| latencies(bench, server, shape))?);
            unprotected.extend(bench.unprotected(&bench.plain(), |server| latencies(bench, server, shape))?);
        }
        unprotected.sort_by(f64::total_cmp);
        let base = *unprotected.get(unprotected.len() / 2).context("nothing was answered")?;
        let added = |all: Vec<f64>| all.into_iter().map(|latency| (latency - base).max(0.0)).collect();
        figures.push(Shape::lower(name, "us", "p50 <= 1000").of(added(protected), Vec::new())?);
        let in_async = format!("{name}.async");
        figures.push(Shape::lower(&in_async, "us", "printed").of(added(leading), Vec::new())?);
        for (part, spread) in PARTS {
            let p50s = parts.iter().map(|stats| spread(stats).p50 as f64).collect();
            figures.push(Shape::lower(&format!("{name}.{part}"), "us", "printed").of(p50s, Vec::new())?);
        }
    }
    Ok(figures)
}

fn latencies(bench: &Bench, server: SocketAddr, shape: load::Shape) -> Result<Vec<f64>> {
    let mut load = Load::prepare(server)?;
    load.run(server, shape, WARM_UP, &bench.stop)?;
    Ok(load.run(server, shape, bench.work_time(), &bench.stop)?.latencies_us)
}

pub(super) fn wire_ratio(bench: &Bench) -> Result<Vec<Measured>> {
    let plain = Guarded { options: &["--shadow-mib", "0"], ..PROTECT };
    let (mut ours, mut whole) = (Vec::new(), Vec::new());
    for round in 1..=bench.options.rounds() {
        bench.show(&format!("wire_ratio: round {round}"));
        ours.push(ratio(bench, &PROTECT)?);
        whole.push(ratio(bench, &plain)?);
    }
    let shape = Shape::lower("wire_ratio", "ratio", "p50 <= 0.1");
    Ok(vec![shape.of(ours, vec![("whole pages", Some(whole))])?])
}

fn ratio(bench: &Bench, protect: &Guarded<'_>) -> Result<f64> {
    bench.protected(protect, |pair, server| {
        let shape = load::Shape::Closed { connections: 8, pipeline: 1 };
        let mut load = Load::prepare(server)?;
        load.run(server, shape, WARM_UP, &bench.stop)?;
        let before = pair.stats(&bench.stop)?;
        load.run(server, shape, bench.work_time(), &bench.stop)?;
        let after = pair.stats(&bench.stop)?;
        Ok((after.bytes - before.bytes) as f64 / ((after.pages - before.pages) as f64 * PAGE_BYTES))
    })
}
