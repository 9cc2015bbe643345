//! What an epoch takes from the guest: a guest that does nothing but dirty pages, as fast as it can, writes fewer of them while it
//! is protected. Its lost time is the share that is missing, in time per epoch; faults of tracking, the pause, and what our own
//! threads take from its processor are all in it. The longest epoch is a twenty-fifth of a second, as for everybody.
//!
//! The peer is our own plain mode, stop-and-copy (`--shadow-mib 0`): pages are sent whole and watched anew after each epoch. The other
//! one is QEMU COLO, its checkpoints as far apart as our epochs are long, against the speed of the same guest on QEMU without it.
//! COLO runs the guest a second time, on the second processor.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bench_figures::Measured;
use bench_vms::resp::Client;
use bench_vms::{Pair, Qemu};

use super::Shape;
use crate::bench::{Bench, Guarded};
use crate::limits::{EPOCH, WARM_UP};

/// Its name among the peers.
const COLO: &str = "qemu colo";

const PATTERNS: [&str; 4] = ["contiguous", "scattered", "hot", "cold"];
/// Pages of the pattern, and how the figure says it.
const SIZES: [(u32, &str); 5] = [(64, "64"), (1024, "1k"), (4096, "4k"), (16_384, "16k"), (65_536, "64k")];
/// Pages a guest with [`RAM_MIB`] can dirty.
const PAGES_MAX: u32 = 100_000;

/// What a turn gave.
struct Turn {
    /// Per epoch, microseconds.
    lost_us: f64,
    pause_us: f64,
}

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let mut figures = Vec::new();
    for pattern in PATTERNS {
        for (pages, size) in SIZES {
            let name = format!("guest_lost_time.{pattern}.{size}");
            // A cold region is sixteen times as large.
            let fits = pages * if pattern == "cold" { 16 } else { 1 } <= PAGES_MAX;
            if fits && bench.options.wants(&name) {
                figures.extend(one(bench, &name, pattern, pages)?);
            }
        }
    }
    Ok(figures)
}

fn one(bench: &Bench, name: &str, pattern: &str, pages: u32) -> Result<Vec<Measured>> {
    let ours = Guarded::PLAIN;
    let plain = Guarded { options: &["--shadow-mib", "0"], ..Guarded::PLAIN };
    let (mut our_turns, mut plain_turns, mut colo_us) = (Vec::new(), Vec::new(), Vec::new());
    let mut qemu = bench.qemu();
    for round in 1..=bench.options.rounds() {
        bench.show(&format!("{name}: round {round}"));
        let free = bench.unprotected(&bench.plain(), |server| {
            let mut client = begin(bench, server, pattern, pages)?;
            Ok(speed(bench, &mut client)?.0)
        })?;
        our_turns.push(turn(bench, &ours, pattern, pages, free)?);
        plain_turns.push(turn(bench, &plain, pattern, pages, free)?);
        if let Some(theirs) = &qemu {
            bench.show(&format!("{name}: round {round}, COLO"));
            match colo(bench, theirs, pattern, pages) {
                Ok(lost_us) => colo_us.push(lost_us),
                Err(error) if bench.stop.wanted() => return Err(error),
                Err(error) => {
                    bench.note(&format!("{name}: no figure of QEMU COLO: {error:#}"));
                    qemu = None;
                }
            }
        }
    }
    let colo_us = Some(colo_us).filter(|_| qemu.is_some());
    let of = |turns: &[Turn], value: fn(&Turn) -> f64| turns.iter().map(value).collect::<Vec<_>>();
    let goal = if pages == 16_384 { "<= 0.5" } else { "printed" };
    let stop_and_copy = |value| vec![("stop-and-copy", Some(of(&plain_turns, value)))];
    let lost = of(&our_turns, |t| t.lost_us);
    let mut peers = stop_and_copy(|t| t.lost_us);
    peers.push((COLO, colo_us.clone()));
    Ok(vec![
        Shape::lower(name, "us", goal).of(lost.clone(), peers)?,
        Shape::lower(&format!("{name}.colo"), "us", "<= 0.1").of(lost, vec![(COLO, colo_us)])?,
        Shape::lower(&format!("{name}.pause"), "us", "printed")
            .of(of(&our_turns, |t| t.pause_us), stop_and_copy(|t| t.pause_us))?,
    ])
}

/// What a checkpoint of QEMU COLO takes from the guest, microseconds.
fn colo(bench: &Bench, qemu: &Qemu, pattern: &str, pages: u32) -> Result<f64> {
    let free = bench.unprotected(qemu, |server| {
        let mut client = begin(bench, server, pattern, pages)?;
        Ok(speed(bench, &mut client)?.0)
    })?;
    bench.protected_by_colo(qemu, EPOCH, |twins, server| {
        let mut client = begin(bench, server, pattern, pages)?;
        let before = twins.checkpoints()?;
        let (rate, seconds) = speed(bench, &mut client)?;
        let checkpoints = twins.checkpoints()? - before;
        ensure!(checkpoints > 0, "no checkpoint in {seconds:.1} s");
        Ok((1.0 - rate / free).max(0.0) * seconds * 1e6 / checkpoints as f64)
    })
}

fn begin(bench: &Bench, server: SocketAddr, pattern: &str, pages: u32) -> Result<Client> {
    let mut client = Client::knock(server, &bench.stop)?;
    client.ask(&["DIRTY", pattern, &pages.to_string()])?;
    bench.stop.pause(WARM_UP)?;
    Ok(client)
}

fn turn(bench: &Bench, protect: &Guarded<'_>, pattern: &str, pages: u32, free: f64) -> Result<Turn> {
    bench.protected(protect, |pair: &mut Pair, server| {
        let mut client = begin(bench, server, pattern, pages)?;
        let before = pair.stats(&bench.stop)?;
        let (rate, seconds) = speed(bench, &mut client)?;
        let after = pair.stats(&bench.stop)?;
        let epochs = (after.epochs - before.epochs) as f64;
        ensure!(epochs > 0.0, "no epoch ended");
        // The figures are a little younger than the guest's counters at both ends: epochs per second, not epochs, compare.
        Ok(Turn {
            lost_us: (1.0 - rate / free).max(0.0) * seconds * 1e6 / epochs,
            pause_us: after.pause_us.p50 as f64,
        })
    })
}

/// Page writes a second, and over how many seconds.
fn speed(bench: &Bench, client: &mut Client) -> Result<(f64, f64)> {
    let begun = Instant::now();
    let before = writes(client)?;
    bench.stop.pause(bench.work_time())?;
    let after = writes(client)?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(((after - before) / seconds, seconds))
}

fn writes(client: &mut Client) -> Result<f64> {
    let told = client.ask(&["DIRTYSTAT"])?;
    let place = told.iter().position(|word| word == "page_writes");
    let number = place.and_then(|place| told.get(place + 1)?.parse().ok());
    number.with_context(|| format!("DIRTYSTAT said {told:?}"))
}
