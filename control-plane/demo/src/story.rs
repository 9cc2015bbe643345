//! Telling a person what happens while it happens.

use std::cell::RefCell;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mycelium_ram::clock;
use mycelium_ram::events::Event;

/// Nodes and their daemons are heard with different delays; lines wait this long for earlier ones.
const SETTLE: Duration = Duration::from_millis(150);

/// One line that changes, and lines that stay, in the order of time.
#[derive(Debug)]
pub(crate) struct Story {
    line: ProgressBar,
    /// The demo's beginning on CLOCK_BOOTTIME, nanoseconds.
    pub(crate) began: u64,
    losses: RefCell<Vec<u64>>,
    /// Lines that may still be preceded by others.
    settling: RefCell<Vec<(u64, String)>>,
}

impl Story {
    pub(crate) fn begin() -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let line = ProgressBar::new_spinner().with_style(style);
        line.enable_steady_tick(Duration::from_millis(120));
        Self { line, began: clock::now().0, losses: RefCell::default(), settling: RefCell::default() }
    }

    /// A line that stays.
    pub(crate) fn say(&self, text: &str) {
        if self.line.is_hidden() {
            eprintln!("{text}");
        } else {
            self.line.println(text);
        }
    }

    /// The line that changes.
    pub(crate) fn now(&self, text: String) {
        self.line.set_message(text);
        self.settle();
    }

    /// Times after this loss count from it.
    pub(crate) fn lost(&self, at: u64) {
        self.losses.borrow_mut().push(at);
    }

    /// A line with a time.
    pub(crate) fn mark(&self, at: u64, text: &str) {
        self.settling.borrow_mut().push((at, text.to_owned()));
        self.settle();
    }

    /// Says the lines that have waited long enough.
    pub(crate) fn settle(&self) {
        let settled = clock::now().0.saturating_sub(u64::try_from(SETTLE.as_nanos()).unwrap_or(0));
        self.say_until(settled);
    }

    pub(crate) fn end(&self) {
        self.say_until(u64::MAX);
        self.line.finish_and_clear();
    }

    fn say_until(&self, settled: u64) {
        let mut settling = self.settling.borrow_mut();
        settling.sort_by_key(|(at, _)| *at);
        let count = settling.partition_point(|(at, _)| *at <= settled);
        for (at, text) in settling.drain(..count) {
            self.say(&format!("{}  {text}", self.stamp(at)));
        }
    }

    fn stamp(&self, t: u64) -> String {
        let losses = self.losses.borrow();
        let loss = losses.iter().rev().find(|lost| **lost <= t);
        let sign = if loss.is_some() { '+' } else { ' ' };
        format!("{sign}{:>9.1} ms", (t - loss.copied().unwrap_or(self.began).min(t)) as f64 / 1e6)
    }
}

/// What an event of a node says, if it is one for people.
pub(crate) fn in_words(event: &Event) -> Option<String> {
    Some(match event {
        Event::Started { role, .. } => format!("started, {role}"),
        Event::Protection { state, reason, .. } => format!("{state}: {reason}"),
        Event::Seeding { pages } => {
            format!("copying {} MiB to the replica while the guest runs", pages / 256)
        }
        Event::Listed { listed: true } => "is in sync and may take over".to_owned(),
        Event::Suspect { why, silent_us, limit_us } => {
            format!(
                "suspects the active: {why} for {:.1} ms (limit {:.1})",
                *silent_us as f64 / 1e3,
                *limit_us as f64 / 1e3
            )
        }
        Event::Taking { epoch } => {
            format!("asks the arbiter to take over from epoch {epoch}, acknowledges nothing more")
        }
        Event::Won { generation, .. } => format!("the arbiter decides: generation {generation} is here"),
        Event::Resumed { epoch, replayed, resent, .. } => {
            format!(
                "guest runs from the end of epoch {epoch}; {resent} held frames sent, {replayed} received ones replayed"
            )
        }
        Event::FirstOutput { .. } => "first output".to_owned(),
        Event::Expelled { reason } | Event::Stopped { reason } => format!("stopped: {reason}"),
        Event::Trouble { what } => format!("trouble: {what}"),
        Event::Drill { phase } => format!("an epoch is held: {phase}"),
        Event::Guest { what } => format!("guest: {what}"),
        Event::Joined { .. }
        | Event::Dropped { .. }
        | Event::InSync { .. }
        | Event::Held { .. }
        | Event::Pace { .. }
        | Event::Mode { .. }
        | Event::Stats(_)
        | Event::ReplicaStats { .. }
        | Event::Listed { .. } => {
            return None;
        }
    })
}
