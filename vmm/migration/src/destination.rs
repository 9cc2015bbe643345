//! The destination's part of the handover: it runs the guest after `Go`, or never.
//!
//! ```text
//!   Listening ─Offered─> Receiving ─Whole─> Restoring ─Restored─> Waiting ─Go─> Taking ─Ran─> Running
//!      ^  │ refused          │                  │                    │            │              │ post-copy: Complete,
//!      └──┘                  └──────────────────┴──── Ended <────────┴────────────┘              v or the pages are lost
//!                                                    (never runs)                              Ended
//! ```

use std::time::Duration;

use crate::limits;
use crate::message::Mode;

/// Where the destination stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It waits for a source.
    Listening,
    /// Memory comes.
    Receiving,
    /// Everything has come.
    Restoring,
    /// It could run, and may not.
    Waiting,
    /// It may run: the disks are being taken.
    Taking,
    /// Post-copy: it runs and lacks pages.
    Running,
    /// It is over: it runs with all it needs, or never will.
    Ended,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest runs here, and needs the source no more.
    Moved,
    /// The guest does not run here and never will.
    Never(String),
    /// Post-copy: the guest ran here and lacks pages that cannot be had any more.
    MemoryLost(String),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A source offers a VM that could run here, or cannot, and why.
    Offered(Result<(), String>),
    /// Everything the switch speaks of has come.
    Whole,
    /// It is restored and checked.
    Restored,
    /// It cannot be.
    Failed(String),
    /// The source handed the guest over.
    Go,
    /// The source keeps it.
    Aborted(String),
    /// The guest runs here.
    Ran,
    /// Post-copy: every page is here.
    Complete,
    /// Nothing is heard of the source any more.
    Lost(String),
    /// [`Destination::patience`] has run out.
    TimedOut,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Accept the offer.
    Accept,
    /// Refuse it, and listen on.
    Refuse(String),
    /// Restore and check; answer `Restored` or `Failed`.
    Restore,
    /// Say that it is ready.
    Ready,
    /// Take the disks, then resume; answer `Ran`, or `Failed` and never try again.
    Run,
    /// Say that it runs.
    Running,
    /// Say that it does not run and never will.
    Stay(String),
    /// Say that every page is here.
    Complete,
    /// Tell whoever waits.
    End(End),
}

/// The destination's part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    state: State,
    mode: Mode,
}

impl Default for Destination {
    fn default() -> Self {
        Self { state: State::Listening, mode: Mode::PreCopy }
    }
}

impl Destination {
    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The source said how memory moves.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// How long to wait for the source; `None` where only its silence counts.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        (self.state == State::Waiting).then_some(limits::GO_WAIT)
    }

    /// Takes what happened. What makes no sense now is ignored.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (State::Listening, Event::Offered(Ok(()))) => self.to(State::Receiving, vec![Action::Accept]),
            (State::Listening, Event::Offered(Err(why))) => vec![Action::Refuse(why)],
            (State::Receiving, Event::Whole) => self.to(State::Restoring, vec![Action::Restore]),
            (State::Restoring, Event::Restored) => self.to(State::Waiting, vec![Action::Ready]),
            (State::Waiting, Event::Go) => self.to(State::Taking, vec![Action::Run]),
            (State::Taking, Event::Ran) if self.mode == Mode::PostCopy => {
                self.to(State::Running, vec![Action::Running])
            }
            (State::Taking, Event::Ran) => self.end(vec![Action::Running], End::Moved),
            (State::Running, Event::Complete) => self.end(vec![Action::Complete], End::Moved),
            (State::Running, Event::Lost(why) | Event::Aborted(why)) => {
                self.end(Vec::new(), End::MemoryLost(why))
            }
            // It is ours now, whatever becomes of the source; with pages missing, the next state hears of it.
            (State::Taking, Event::Failed(why)) => self.never(&why),
            (State::Listening | State::Taking | State::Running | State::Ended, _) => Vec::new(),
            (_, event) => self.before_go(event),
        }
    }

    fn before_go(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Failed(why) => self.never(&why),
            Event::Aborted(why) => {
                self.end(Vec::new(), End::Never(format!("the source keeps the VM: {why}")))
            }
            Event::Lost(why) => self.end(Vec::new(), End::Never(format!("the source was lost: {why}"))),
            Event::TimedOut => self.never("the source did not hand the VM over in time"),
            _ => Vec::new(),
        }
    }

    fn never(&mut self, why: &str) -> Vec<Action> {
        self.end(vec![Action::Stay(why.to_owned())], End::Never(why.to_owned()))
    }

    fn end(&mut self, mut actions: Vec<Action>, end: End) -> Vec<Action> {
        actions.push(Action::End(end));
        self.to(State::Ended, actions)
    }

    fn to(&mut self, state: State, actions: Vec<Action>) -> Vec<Action> {
        self.state = state;
        actions
    }
}
