//! One request at a time over TCP through a tap: PING and GET in turn on one connection, so the figure is the latency of the
//! whole way into the guest and back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bench_figures::{Better, Measured};

use super::Shape;
use crate::bench::Bench;
use crate::limits::{RAM_MIB, WARM_UP};
use bench_vms::Wire;
use bench_vms::resp::{Client, encode};
use bench_vms::{Begin, Flavour, Setup, Vmm};

pub(super) const NAME: &str = "vmm.net_request_response";
pub(super) const SHAPE: Shape = Shape { name: NAME, unit: "1/s", better: Better::Higher, goal: ">= 1.0" };
pub(super) const LATENCY: &str = "vmm.net_request_response.latency";
pub(super) const LATENCY_SHAPE: Shape =
    Shape { name: LATENCY, unit: "us", better: Better::Lower, goal: "printed" };
const FLAVOURS: [Flavour; 2] = [Flavour::VhostOn, Flavour::VhostOff];

/// What the key holds; as long as a small record.
const VALUE: &str = "0123456789abcdef0123456789abcdef";

/// What a turn gave.
struct Turn {
    per_second: f64,
    latencies_us: Vec<f64>,
}

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let vmms = bench.contenders(&FLAVOURS);
    let turns = bench.in_turn(NAME, &vmms, |vmm| turn(bench, vmm))?;
    let rates = turns.iter().map(|turns| turns.iter().map(|turn| turn.per_second).collect()).collect();
    let latencies = |turns: Vec<Turn>| turns.into_iter().flat_map(|turn| turn.latencies_us).collect();
    let latencies = turns.into_iter().map(latencies).collect();
    let absent = || bench.absent(&FLAVOURS);
    Ok(vec![SHAPE.of(&vmms, rates, absent())?, LATENCY_SHAPE.of(&vmms, latencies, absent())?])
}

fn turn(bench: &Bench, vmm: &dyn Vmm) -> Result<Turn> {
    let wire = Wire::lay()?;
    let setup = Setup { ram_mib: RAM_MIB, wire: Some(&wire), ..Setup::default() };
    let mut running = bench.start(vmm, &setup, Begin::Boot)?;
    running.ready(&bench.stop)?;
    let mut client = Client::knock(wire.server()?, &bench.stop)?;
    client.ask(&["SET", "key", VALUE])?;
    work(bench, &mut client, WARM_UP)?;
    work(bench, &mut client, Duration::from_secs(bench.options.work_seconds()))
}

fn work(bench: &Bench, client: &mut Client, time: Duration) -> Result<Turn> {
    let requests = [(encode(&["PING"]), "PONG"), (encode(&["GET", "key"]), VALUE)];
    let mut latencies_us = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        bench.stop.check()?;
        for (request, expected) in &requests {
            let sent = Instant::now();
            let reply = client.exchange(request)?;
            latencies_us.push(sent.elapsed().as_secs_f64() * 1e6);
            ensure!(reply == [*expected], "the guest answered {reply:?} instead of {expected}");
        }
    }
    let count = u32::try_from(latencies_us.len()).map_or(f64::INFINITY, f64::from);
    Ok(Turn { per_second: count / begun.elapsed().as_secs_f64(), latencies_us })
}
