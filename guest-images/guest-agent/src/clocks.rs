//! Watching the clocks: one thread looks for steps back, another counts on the console.

use crate::limits::{CLOCK_SAMPLE, TICK};
use crate::sys::{ClockId, clock_ns};
use resp_kv::Clocks;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What the threads have found, for `CLOCKS` and `COUNTER`.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    max_backward_step_ns: AtomicU64,
    ticks: AtomicU64,
}

impl Sampler {
    /// A reading of all clocks.
    pub(crate) fn clocks(&self) -> Clocks {
        Clocks {
            mono_ns: clock_ns(ClockId::Monotonic),
            wall_ns: clock_ns(ClockId::Realtime),
            boottime_ns: clock_ns(ClockId::Boottime),
            max_backward_step_ns: self.max_backward_step_ns.load(Ordering::Relaxed),
        }
    }

    /// Tick lines printed.
    pub(crate) fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    fn compare(&self, earlier_ns: u64, later_ns: u64) {
        self.max_backward_step_ns.fetch_max(earlier_ns.saturating_sub(later_ns), Ordering::Relaxed);
    }
}

/// Starts both threads, which end with the process.
pub(crate) fn start(sampler: &Arc<Sampler>) -> io::Result<()> {
    let watched = Arc::clone(sampler);
    thread::Builder::new().name("clock-watch".into()).spawn(move || watch(&watched))?;
    let counted = Arc::clone(sampler);
    thread::Builder::new().name("ticker".into()).spawn(move || tick(&counted))?;
    Ok(())
}

fn watch(sampler: &Sampler) -> ! {
    let read = || [clock_ns(ClockId::Monotonic), clock_ns(ClockId::Realtime)];
    let mut last = read();
    loop {
        thread::sleep(CLOCK_SAMPLE);
        let now = read();
        sampler.compare(last[0], now[0]);
        sampler.compare(last[1], now[1]);
        last = now;
    }
}

fn tick(sampler: &Sampler) -> ! {
    loop {
        thread::sleep(TICK);
        let number = sampler.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        let (mono, wall) = (clock_ns(ClockId::Monotonic), clock_ns(ClockId::Realtime));
        println!("tick {number} mono_ns={mono} wall_ns={wall}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_back_count_and_the_largest_stays() {
        let sampler = Sampler::default();
        sampler.compare(100, 200);
        assert_eq!(sampler.clocks().max_backward_step_ns, 0);
        sampler.compare(200, 150);
        sampler.compare(200, 190);
        assert_eq!(sampler.clocks().max_backward_step_ns, 50);
    }

    #[test]
    fn the_clocks_run() {
        let clocks = Sampler::default().clocks();
        assert!(
            clocks.mono_ns > 0 && clocks.boottime_ns >= clocks.mono_ns && clocks.wall_ns > clocks.mono_ns
        );
    }
}
