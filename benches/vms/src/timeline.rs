//! What a node of the pair has noted, read from its run folder.

use std::fs;
use std::path::Path;

use mycelium_ram::events::{Event, Stamped, Stats};

/// Everything noted so far; a line not yet finished is left out.
pub fn read(run_dir: &Path) -> Vec<Stamped> {
    let text = fs::read_to_string(run_dir.join("events.jsonl")).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect()
}

/// Whether the last word on protection was that there is some.
pub fn is_protected(events: &[Stamped]) -> bool {
    let said = events.iter().rev().find_map(|e| match &e.event {
        Event::Protection { protected, .. } => Some(*protected),
        _ => None,
    });
    said == Some(true)
}

/// The newest figures, and when they were noted.
pub fn newest_stats(events: &[Stamped]) -> Option<(u64, Stats)> {
    events
        .iter()
        .rev()
        .find_map(|e| if let Event::Stats(stats) = &e.event { Some((e.t_ns, *stats)) } else { None })
}

/// Microseconds between the arbiter's word and the guest's first instruction here.
pub fn promotion_us(events: &[Stamped]) -> Option<f64> {
    let at = |wanted: fn(&Event) -> bool| events.iter().find(|e| wanted(&e.event)).map(|e| e.t_ns);
    let won = at(|e| matches!(e, Event::Won { .. }))?;
    let resumed = at(|e| matches!(e, Event::Resumed { .. }))?;
    Some(resumed.saturating_sub(won) as f64 / 1000.0)
}
