//! Long work on a terminal: shown while it goes on, ended by a signal.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use mycelium_images::Observer;

/// Shows on the terminal how long work goes on, and ends it at SIGINT or SIGTERM.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    last: RefCell<String>,
}

impl Watch {
    /// From now on the signals are ours.
    pub(super) fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, stop.clone())?;
        }
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}")?);
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Ok(Self { stop, bar, last: RefCell::default() })
    }

    /// Clears the line.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Watch {
    fn step(&self, what: &str) {
        what.clone_into(&mut self.last.borrow_mut());
        self.bar.set_message(what.to_owned());
        if self.bar.is_hidden() {
            eprintln!("{what}");
        }
    }

    fn progress(&self, done: u64, total: u64) {
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        self.bar.set_message(format!("{} {percent} %", self.last.borrow()));
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
