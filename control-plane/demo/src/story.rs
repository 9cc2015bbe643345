//! Telling a person what happens while it happens.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mycelium_ram::clock;
use mycelium_ram::events::{Event, Stamped};

use crate::world::Side;

/// One line that changes, and lines that stay.
#[derive(Debug)]
pub(crate) struct Story {
    line: ProgressBar,
    began: u64,
    lost_at: Option<u64>,
}

impl Story {
    pub(crate) fn begin() -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let line = ProgressBar::new_spinner().with_style(style);
        line.enable_steady_tick(Duration::from_millis(120));
        Self { line, began: clock::now().0, lost_at: None }
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
    }

    /// From now on times count from the loss.
    pub(crate) fn lost(&mut self, at: u64) {
        self.lost_at = Some(at);
    }

    /// Tells an event of a node, if it is one for people.
    pub(crate) fn tell(&self, side: Side, event: &Stamped) {
        let Some(words) = in_words(&event.event) else { return };
        self.say(&format!("{}  node {side:?}: {words}", self.stamp(event.t_ns)));
    }

    /// A line with a time.
    pub(crate) fn mark(&self, at: u64, text: &str) {
        self.say(&format!("{}  {text}", self.stamp(at)));
    }

    pub(crate) fn end(&self) {
        self.line.finish_and_clear();
    }

    fn stamp(&self, t: u64) -> String {
        let zero = self.lost_at.unwrap_or(self.began);
        let sign = if self.lost_at.is_some() { "+" } else { " " };
        format!("{sign}{:>9.1} ms", (t as f64 - zero as f64) / 1e6)
    }
}

fn in_words(event: &Event) -> Option<String> {
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
        Event::Guest { what } => format!("guest: {what}"),
        Event::Joined { .. }
        | Event::Dropped { .. }
        | Event::InSync { .. }
        | Event::Held { .. }
        | Event::Stats(_)
        | Event::ReplicaStats { .. }
        | Event::Listed { .. } => {
            return None;
        }
    })
}
