//! The link's one timer: looks at every path, recalls from silent ones, asks about overdue bundles.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::limits::WATCH_EVERY;
use crate::link::Link;

/// A tick this late means that the process was stopped or starved, not that paths were silent.
const LATE: Duration = Duration::from_millis(30);

pub(crate) async fn run(link: Arc<Link>) {
    let mut ticks = tokio::time::interval(WATCH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = link.wait_closed() => return,
            _ = ticks.tick() => {}
        }
        let elapsed = last.elapsed();
        last = Instant::now();
        let absent = if elapsed > LATE { elapsed } else { Duration::ZERO };
        link.observe(absent);
        link.ask_overdue();
    }
}
