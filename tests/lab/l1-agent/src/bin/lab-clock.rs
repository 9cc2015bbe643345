//! A program for lab hosts that shows whether, and by which clock, a host goes on: one line every 10 ms,
//! `tick NUMBER monotonic_us NUMBER wall_us NUMBER`, until it is killed.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

const INTERVAL: Duration = Duration::from_millis(10);

fn main() {
    for tick in 1_u64.. {
        let monotonic = clock_gettime(ClockId::Monotonic);
        let monotonic_us = monotonic.tv_sec * 1_000_000 + monotonic.tv_nsec / 1000;
        let wall_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        println!("tick {tick} monotonic_us {monotonic_us} wall_us {wall_us}");
        thread::sleep(INTERVAL);
    }
}
