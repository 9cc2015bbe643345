//! How fast a new replica is sent a guest whose memory no compressor gains on: from the first page to the acknowledgement of all of
//! it, over loopback, with datagrams as small as every network carries and with jumbo frames. Both sides' processor time per GB is
//! beside it. The peer moves the same guest as fast as it can with encryption (`qemu_move.rs`). Either side's memory is there before.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bench_figures::Measured;
use bench_vms::resp::Client;
use bench_vms::{Pair, Vmm};
use mycelium_ram::events::{Event, Stamped};

use super::Shape;
use crate::bench::{Bench, Guarded};
use crate::limits::FILL_PATIENCE;

const RAM_MIB: u32 = 1536;
/// 1 GiB.
const PAGES: u64 = 262_144;
const BYTES: f64 = PAGES as f64 * 4096.0;
/// What the active says when its replica has acknowledged all it lacked.
const SEEDED: &str = "holds everything";
/// Whichever is faster is the peer.
const CHANNELS: [u32; 2] = [2, 4];

/// One turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    mb_per_second: f64,
    /// Of both sides.
    cpu_seconds_per_gb: f64,
}

impl Turn {
    fn of(seconds: f64, cpu_seconds: f64) -> Self {
        Self { mb_per_second: BYTES / 1e6 / seconds, cpu_seconds_per_gb: cpu_seconds / (BYTES / 1e9) }
    }
}

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let sizes = [("mtu1452", "1452", ">= 1.0"), ("jumbo", "8952", ">= 2.0")];
    let qemu = bench.qemu();
    let mut ours = sizes.map(|_| Vec::new());
    let mut theirs = CHANNELS.map(|_| Vec::new());
    for round in 1..=bench.options.rounds() {
        for ((size, mtu, _), turns) in sizes.iter().zip(&mut ours) {
            bench.show(&format!("seed_rate.{size}: round {round}"));
            let both = ["--mtu", *mtu];
            let guarded = Guarded { ram_mib: RAM_MIB, both: &both, ..Guarded::PLAIN };
            turns.push(bench.protected(&guarded, |pair, server| seed(bench, pair, server))?);
        }
        for (channels, turns) in CHANNELS.iter().zip(&mut theirs) {
            let Some(qemu) = &qemu else { continue };
            bench.show(&format!("seed_rate: round {round}, {} with {channels} channels", qemu.name()));
            let moved = bench.moved_by_qemu(qemu, RAM_MIB, *channels, |server| fill(bench, server))?;
            turns.push(Turn::of(moved.seconds, moved.cpu_seconds));
        }
    }
    let names = CHANNELS.map(|channels| format!("qemu multifd {channels} tls"));
    let peers = |value: fn(&Turn) -> f64| {
        let values = theirs.iter().map(|turns| qemu.is_some().then(|| turns.iter().map(value).collect()));
        names.iter().map(String::as_str).zip(values).collect::<Vec<(&str, Option<Vec<f64>>)>>()
    };
    let mut figures = Vec::new();
    for ((size, _, goal), turns) in sizes.iter().zip(&ours) {
        let (rate, cpu) = (|t: &Turn| t.mb_per_second, |t: &Turn| t.cpu_seconds_per_gb);
        figures.push(
            Shape::higher(&format!("seed_rate.{size}"), "MB/s", goal)
                .of(turns.iter().map(rate).collect(), peers(rate))?,
        );
        figures.push(
            Shape::lower(&format!("seed_rate.{size}.cpu"), "s/GB", "printed")
                .of(turns.iter().map(cpu).collect(), peers(cpu))?,
        );
    }
    Ok(figures)
}

/// Has the guest write 1 GiB, and waits until it has.
fn fill(bench: &Bench, server: SocketAddr) -> Result<()> {
    let mut client = Client::knock(server, &bench.stop)?;
    client.ask(&["DIRTY", "random", &PAGES.to_string()])?;
    let deadline = Instant::now() + FILL_PATIENCE;
    while !client.ask(&["DIRTYSTAT"])?.iter().any(|word| *word == PAGES.to_string()) {
        if Instant::now() > deadline {
            bail!("the guest did not fill its memory within {} s", FILL_PATIENCE.as_secs());
        }
        bench.stop.pause(Duration::from_millis(50))?;
    }
    Ok(())
}

fn seed(bench: &Bench, pair: &mut Pair, server: SocketAddr) -> Result<Turn> {
    fill(bench, server)?;
    let before = pair.active.events().len();
    let of_active = pair.active.cpu_seconds()?;
    pair.renew_passive(&bench.stop)?;
    let since = |pair: &Pair| pair.active.events().split_off(before);
    let begun = pair.until("the first page to be sent", &bench.stop, |pair| {
        Some((seeding(&since(pair))?, pair.passive.cpu_seconds().ok()?))
    })?;
    let ended = pair.until("the replica to have everything", &bench.stop, |pair| seeded(&since(pair)))?;
    let cpu = pair.active.cpu_seconds()? - of_active + pair.passive.cpu_seconds()? - begun.1;
    Ok(Turn::of((ended - begun.0) as f64 / 1e9, cpu))
}

fn seeding(events: &[Stamped]) -> Option<u64> {
    events.iter().find(|e| matches!(e.event, Event::Seeding { .. })).map(|e| e.t_ns)
}

fn seeded(events: &[Stamped]) -> Option<u64> {
    let after = events.iter().skip_while(|e| !matches!(e.event, Event::Seeding { .. }));
    let said = |e: &&Stamped| matches!(&e.event, Event::Protection { reason, .. } if reason.contains(SEEDED));
    after.into_iter().find(said).map(|e| e.t_ns)
}
