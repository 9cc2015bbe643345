//! A pair whose host has no processor to spare: as many threads as there are processors do nothing but spin, at the priority of
//! everybody else, while clients work. Nobody is lost; a takeover would be false, and so would be a replica given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use bench_figures::Measured;
use bench_vms::timeline;
use mycelium_ram::events::{Event, Stamped};

use super::Shape;
use crate::bench::{Bench, Guarded};
use crate::limits::{SOAK_STEP, WARM_UP};
use crate::load::{Load, Shape as Requests};

const PROTECT: Guarded<'static> = Guarded::PLAIN;
const CLIENTS: Requests = Requests::Closed { connections: 8, pipeline: 1 };

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let time = bench.options.soak_time();
    let (active, passive) = bench.protected(&PROTECT, |pair, server| {
        let mut load = Load::prepare(server)?;
        load.run(server, CLIENTS, WARM_UP, &bench.stop)?;
        let _spinning = Spinning::start();
        let mut done = Duration::ZERO;
        while done < time && took_over(&pair.passive.events()) == 0 {
            bench.show(&format!("false_takeovers: {} of {} s", done.as_secs(), time.as_secs()));
            load.run(server, CLIENTS, SOAK_STEP.min(time - done), &bench.stop)?;
            done += SOAK_STEP;
        }
        Ok((pair.active.events(), pair.passive.events()))
    })?;
    let count = |name: &str, goal, n: usize| Shape::lower(name, "count", goal).of(vec![n as f64], Vec::new());
    let suspected = passive.iter().filter(|e| matches!(e.event, Event::Suspect { .. })).count();
    let silences = passive.iter().filter_map(|e| match e.event {
        Event::Suspect { silent_us, .. } => Some(silent_us as f64),
        _ => None,
    });
    let silences: Vec<f64> = silences.collect();
    let mut figures = vec![
        count("false_takeovers", "max <= 0", took_over(&passive))?,
        count("false_takeovers.suspicions", "printed", suspected)?,
        count("false_takeovers.replicas_given_up", "printed", given_up(&active))?,
        Shape::higher("false_takeovers.soak", "s", "printed").of(vec![time.as_secs_f64()], Vec::new())?,
    ];
    if !silences.is_empty() {
        figures.push(Shape::lower("false_takeovers.silence", "us", "printed").of(silences, Vec::new())?);
    }
    Ok(figures)
}

fn took_over(passive: &[Stamped]) -> usize {
    passive.iter().filter(|e| matches!(e.event, Event::Won { .. })).count()
}

/// How often the active went on without its replica.
fn given_up(active: &[Stamped]) -> usize {
    let protected_at = active.iter().position(|e| timeline::is_protected(std::slice::from_ref(e)));
    let after = active.iter().skip(protected_at.unwrap_or(active.len()));
    after.filter(|e| matches!(e.event, Event::Dropped { .. })).count()
}

/// Threads that leave nobody a processor of his own; they end with this.
struct Spinning {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Spinning {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..processors).map(spin).collect();
        Self { stop, threads }
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
