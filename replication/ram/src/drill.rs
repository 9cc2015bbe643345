//! Rehearsals: an epoch is held in one phase, so that whoever rehearses a loss can strike exactly there.
//!
//! A process that is told to (`--drill PHASE`) waits for a file of the name `drill` in its run folder. In the next epoch after
//! somebody has laid it there, the thread that reaches the phase says so in the timeline and stands still for [`HOLD`]; then it goes
//! on as if nothing had been. Threads that are not on their way through the phase, heartbeats among them, do not notice.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::events::{Event, EventLog};

/// How long the phase lasts: enough to strike, and too short for anybody to suspect a loop that hangs.
pub const HOLD: Duration = Duration::from_millis(200);

/// A phase of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its end is decided, the guest still runs.
    Ending,
    /// The guest is stopped, its state saved; nothing has been sent.
    Paused,
    /// The guest runs in the next epoch; some of this one has been sent, its end has not.
    Sending,
    /// Every replica has acknowledged it, nothing of its output has left.
    Acked,
    /// Some of its output has left.
    Releasing,
}

impl Phase {
    /// All of them, in the order in which an epoch passes them.
    pub const ALL: [Self; 5] = [Self::Ending, Self::Paused, Self::Sending, Self::Acked, Self::Releasing];

    /// Its name on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ending => "ending",
            Self::Paused => "paused",
            Self::Sending => "sending",
            Self::Acked => "acked",
            Self::Releasing => "releasing",
        }
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|phase| phase.name() == name)
            .ok_or_else(|| format!("no phase of that name; there are {}", names()))
    }
}

#[derive(Debug)]
struct Drill {
    phase: Phase,
    order: PathBuf,
    done: AtomicBool,
    events: EventLog,
}

static DRILL: OnceLock<Drill> = OnceLock::new();

/// Has this process hold `phase` once, after the file `order` has appeared. The first call counts.
pub fn prepare(phase: Phase, order: PathBuf, events: EventLog) {
    let _ = DRILL.set(Drill { phase, order, done: AtomicBool::new(false), events });
}

/// The calling thread has reached the phase with something to do in it.
pub(crate) fn reached(phase: Phase) {
    if let Some(drill) = DRILL.get() {
        drill.reached(phase);
    }
}

impl Drill {
    fn reached(&self, phase: Phase) {
        if phase == self.phase && self.order.exists() && !self.done.swap(true, Ordering::Relaxed) {
            self.events.note(Event::Drill { phase: phase.name().to_owned() });
            std::thread::sleep(HOLD);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_phases() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse(), Ok(phase));
        }
        assert!("dreaming".parse::<Phase>().unwrap_err().contains("releasing"));
    }

    #[test]
    fn a_phase_is_held_once_and_only_when_it_is_ordered() {
        let folder = tempfile::tempdir().unwrap();
        let order = folder.path().join("drill");
        let (told, heard) = std::sync::mpsc::channel();
        let events = EventLog::start(move |stamped| drop(told.send(stamped.event.clone()))).unwrap();
        let drill =
            Drill { phase: Phase::Sending, order: order.clone(), done: AtomicBool::new(false), events };
        drill.reached(Phase::Sending);
        std::fs::write(&order, "").unwrap();
        drill.reached(Phase::Paused);
        drill.reached(Phase::Sending);
        drill.reached(Phase::Sending);
        drill.events.flush(Duration::from_secs(10));
        let noted: Vec<Event> = heard.try_iter().collect();
        assert!(matches!(&noted[..], [Event::Drill { phase }] if phase == "sending"), "{noted:?}");
    }
}
