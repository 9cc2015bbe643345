//! The source's part of the handover: what it does next, and when it must not run the guest any more.
//!
//! ```text
//!   Idle ─begin─> Offering ─Accepted─> Copying ─Converged─> Switching ─Ready─> Releasing ─Released─> Committed
//!                    │                    │                     │                  │            NotSent│  │Running
//!                    └─────── Ended <─────┘ (the guest ran on)  └──> Returning <───┴──── Stays ────────┤  ├─> Ended
//!                               ^                                     │     ^                          │  └─> Serving
//!                               └───────────── Resumed ───────────────┘     └── Retake ── Limbo <──────┘ Lost, TimedOut
//! ```
//!
//! `Go` leaves on the way into `Committed`. From there only the destination's word (`Running`, `Stays`), the certainty that `Go`
//! did not leave (`NotSent`), or the operator (`Retake`) ends the guest's standstill.

use std::time::Duration;

use crate::limits;
use crate::message::Mode;

/// Where the source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing has been said.
    Idle,
    /// The destination compares the machines.
    Offering,
    /// Memory is being sent; the guest runs.
    Copying,
    /// The guest stands; the rest is being sent and restored.
    Switching,
    /// The destination is ready; the disks are being let go of.
    Releasing,
    /// `Go` has left, or is leaving.
    Committed,
    /// `Go` has left and no word came back. The guest stands here; whether it runs there is not known.
    Limbo,
    /// The disks are being taken back and the guest resumed.
    Returning,
    /// Post-copy: the guest runs there and lacks pages.
    Serving,
    /// It is over.
    Ended,
}

/// Why the guest stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// The destination does not want it.
    #[error("the destination refuses the VM: {0}")]
    Refused(String),
    /// The destination could not go on with it.
    #[error("the destination gave up: {0}")]
    There(String),
    /// This side could not.
    #[error("{0}")]
    Here(String),
    /// No word from the destination.
    #[error("the destination was lost: {0}")]
    Lost(String),
    /// It took too long.
    #[error("the destination did not {0} in time")]
    Late(&'static str),
    /// Somebody wanted it so.
    #[error("the migration was cancelled: {0}")]
    Cancelled(String),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest runs at the destination, with all it needs.
    Moved,
    /// The guest runs, or stands as before, here.
    Stayed(Failure),
    /// Post-copy: the guest ran there and cannot go on; pages it lacked were here.
    Broken(String),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The destination accepted.
    Accepted,
    /// It refused.
    Refused(String),
    /// What is left fits into the downtime, or is for post-copy.
    Converged,
    /// This side cannot go on with what it is doing.
    Failed(String),
    /// The destination is ready.
    Ready,
    /// The disks are let go of.
    Released,
    /// `Go` did not leave, for certain.
    NotSent(String),
    /// The guest runs there.
    Running,
    /// The guest does not run there and never will.
    Stays(String),
    /// Post-copy: the destination has every page.
    Complete,
    /// Nothing is heard of the destination any more.
    Lost(String),
    /// [`Source::patience`] has run out.
    TimedOut,
    /// The operator, or the guest's fate, ends it.
    Cancelled(String),
    /// The operator is certain that the guest does not run there.
    Retake,
    /// The guest is back as it was before the switch.
    Resumed,
    /// It is not: its disks cannot be had.
    NotResumed(String),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the offer.
    Offer,
    /// Send memory while the guest runs; answer `Converged` or `Failed`.
    Copy,
    /// Pause the guest and send the rest; answer `Failed` if that fails.
    Switch,
    /// Let go of the disks; answer `Released` or `Failed`.
    Release,
    /// Send `Go`; answer `NotSent` if it did not leave.
    Go,
    /// Tell the destination, if it can be told, that the guest stays here.
    Abort(String),
    /// Take the disks back and let the guest go on as before; answer `Resumed` or `NotResumed`.
    Resume,
    /// Tell the operator that the guest stands, why, and what to do.
    Confess(String),
    /// Send the pages the destination lacks, those it asks for first.
    Serve,
    /// Tell whoever asked.
    End(End),
}

/// The source's part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    state: State,
    mode: Mode,
    /// Why it is `Returning`.
    failure: Option<Failure>,
}

impl Source {
    /// Before anything was said.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self { state: State::Idle, mode, failure: None }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Starts.
    pub fn begin(&mut self) -> Vec<Action> {
        self.to(State::Offering, Action::Offer)
    }

    /// How long to wait for the destination; `None` where only its silence counts, or nothing is waited for.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        match self.state {
            State::Offering => Some(limits::ANSWER_WAIT),
            State::Switching => Some(limits::READY_WAIT),
            State::Committed => Some(limits::RUNNING_WAIT),
            _ => None,
        }
    }

    /// Takes what happened. What makes no sense now is ignored: it crossed with something else.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (State::Offering, Event::Accepted) => self.to(State::Copying, Action::Copy),
            (State::Offering, Event::Refused(why)) => self.end(End::Stayed(Failure::Refused(why))),
            (State::Copying, Event::Converged) => self.to(State::Switching, Action::Switch),
            (State::Switching, Event::Ready) => self.to(State::Releasing, Action::Release),
            (State::Releasing, Event::Released) => self.to(State::Committed, Action::Go),
            (State::Returning, Event::Resumed) => {
                let failure = self.failure.take().unwrap_or_else(|| Failure::Here(String::new()));
                self.end(End::Stayed(failure))
            }
            (State::Returning, Event::NotResumed(why)) => self.confess(&cannot_resume(&why)),
            (State::Serving, event) => self.serving(event),
            (State::Committed | State::Limbo, event) => self.committed(event),
            (State::Offering | State::Copying | State::Switching | State::Releasing, event) => {
                self.failure_of(event).map_or_else(Vec::new, |failure| self.fail(failure))
            }
            _ => Vec::new(),
        }
    }

    /// `Go` may have arrived.
    fn committed(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Running if self.mode == Mode::PostCopy => self.to(State::Serving, Action::Serve),
            Event::Running => self.end(End::Moved),
            Event::Stays(why) => self.give_back(Failure::There(why)),
            Event::NotSent(why) if self.state == State::Committed => self.give_back(Failure::Lost(why)),
            Event::Retake if self.state == State::Limbo => {
                let failure = self.failure.take();
                self.give_back(
                    failure.unwrap_or_else(|| {
                        Failure::Cancelled("the operator resumed the guest here".to_owned())
                    }),
                )
            }
            Event::Lost(why) if self.state == State::Committed => self.confess(&unknown(&why)),
            Event::TimedOut if self.state == State::Committed => {
                self.confess(&unknown("it did not say within the time it has"))
            }
            _ => Vec::new(),
        }
    }

    fn serving(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Complete => self.end(End::Moved),
            Event::Lost(why) | Event::Failed(why) | Event::Stays(why) => self.end(End::Broken(why)),
            _ => Vec::new(),
        }
    }

    /// What an event means before `Go`.
    fn failure_of(&self, event: Event) -> Option<Failure> {
        match event {
            Event::Failed(why) => Some(Failure::Here(why)),
            Event::Stays(why) => Some(Failure::There(why)),
            Event::Lost(why) => Some(Failure::Lost(why)),
            Event::Cancelled(why) => Some(Failure::Cancelled(why)),
            Event::TimedOut if self.state == State::Offering => Some(Failure::Late("answer")),
            Event::TimedOut => Some(Failure::Late("get ready")),
            _ => None,
        }
    }

    fn fail(&mut self, failure: Failure) -> Vec<Action> {
        let abort = Action::Abort(failure.to_string());
        let rest = match self.state {
            State::Switching | State::Releasing => self.give_back(failure),
            _ => self.end(End::Stayed(failure)),
        };
        [abort].into_iter().chain(rest).collect()
    }

    fn give_back(&mut self, failure: Failure) -> Vec<Action> {
        self.failure = Some(failure);
        self.to(State::Returning, Action::Resume)
    }

    fn confess(&mut self, what: &str) -> Vec<Action> {
        self.to(State::Limbo, Action::Confess(what.to_owned()))
    }

    fn end(&mut self, end: End) -> Vec<Action> {
        self.to(State::Ended, Action::End(end))
    }

    fn to(&mut self, state: State, action: Action) -> Vec<Action> {
        self.state = state;
        vec![action]
    }
}

fn unknown(why: &str) -> String {
    format!(
        "the guest was handed over and the destination does not say whether it runs ({why}); it stands still here: look at the \
         destination, and if it certainly does not run there, Resume lets it go on here; otherwise stop this process"
    )
}

fn cannot_resume(why: &str) -> String {
    format!(
        "the guest was to go on here and cannot ({why}); it stands still: mend the cause, make sure that it does not run at the \
         destination, and Resume"
    )
}
