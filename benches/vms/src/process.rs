//! What the kernel says of a process.

use std::fs;

use anyhow::{Context, Result};

/// Processor time it has used, seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // After the name, which may hold anything but ends with the last parenthesis.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).with_context(|| format!("{path} is not as expected"))?;
    Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
}
