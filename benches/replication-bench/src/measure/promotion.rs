//! From the arbiter's decision to the guest's first instruction on the replica, by the replica's own timeline, for guests of
//! different size. A large guest must not take longer: its memory is there and touched.

use anyhow::Result;
use bench_figures::Measured;

use super::Shape;
use crate::bench::{Bench, Guarded};
use crate::limits::WARM_UP;
use crate::load::{Load, Shape as Requests};

/// RAM, MiB, and how the figure says it.
const SIZES: [(u32, &str); 3] = [(256, "256m"), (2048, "2g"), (8192, "8g")];

pub(super) fn measure(bench: &Bench) -> Result<Vec<Measured>> {
    let mut figures = Vec::new();
    for (ram_mib, size) in SIZES {
        let name = format!("promotion.{size}");
        if !bench.options.wants(&name) {
            continue;
        }
        let mut values = Vec::new();
        for round in 1..=bench.options.rounds() {
            bench.show(&format!("{name}: round {round}"));
            let protect = Guarded { ram_mib, ..Guarded::PLAIN };
            values.push(bench.protected(&protect, |pair, server| {
                let mut load = Load::prepare(server)?;
                load.run(server, Requests::Closed { connections: 8, pipeline: 1 }, WARM_UP, &bench.stop)?;
                pair.take_over(&bench.stop)
            })?);
        }
        figures.push(Shape::lower(&name, "us", "p99 <= 5000").of(values, Vec::new())?);
    }
    Ok(figures)
}
