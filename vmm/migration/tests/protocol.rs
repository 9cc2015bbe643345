//! Every world that two sides and a bad link can get into, one step at a time: a message arrives or the link is cut, a step
//! succeeds or fails, a wait runs out, somebody cancels, a process dies. In none of them do two guests run, or two processes
//! write to the disks; and none comes to rest with no guest running unless somebody was told.

use std::collections::{HashSet, VecDeque};

use endophyte_migration::destination::{self, Destination};
use endophyte_migration::message::Mode;
use endophyte_migration::source::{self, Source, State};

/// The messages that matter for who runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    Offer,
    Accept,
    Refuse,
    Switch,
    Ready,
    Go,
    Running,
    Stay,
    Abort,
    Complete,
}

/// Work that ends well or badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Work {
    Copy,
    Switch,
    Release,
    Go,
    Resume,
    Restore,
    Run,
    Fill,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    source: Source,
    destination: Destination,
    to_destination: VecDeque<Word>,
    to_source: VecDeque<Word>,
    cut: bool,
    source_work: Option<Work>,
    destination_work: Option<Work>,
    runs_here: bool,
    runs_there: bool,
    disks_here: bool,
    disks_there: bool,
    /// The operator knows that the guest stands, or that it is lost.
    told: bool,
    source_dead: bool,
    destination_dead: bool,
    /// A process that ran the guest was killed: nobody can help that.
    guest_killed: bool,
}

/// Adds the world that a change leads to.
type Step<'a> = dyn FnMut(&dyn Fn(&mut World)) + 'a;

/// Reasons make no difference here.
fn why() -> String {
    String::new()
}

impl World {
    fn new(mode: Mode) -> Self {
        let mut destination = Destination::default();
        destination.set_mode(mode);
        let mut world = Self {
            source: Source::new(mode),
            destination,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            cut: false,
            source_work: None,
            destination_work: None,
            runs_here: true,
            runs_there: false,
            disks_here: true,
            disks_there: false,
            told: false,
            source_dead: false,
            destination_dead: false,
            guest_killed: false,
        };
        let actions = world.source.begin();
        world.source_acts(actions);
        world
    }

    fn say_there(&mut self, word: Word) {
        if !self.cut {
            self.to_destination.push_back(word);
        }
    }

    fn say_here(&mut self, word: Word) {
        if !self.cut {
            self.to_source.push_back(word);
        }
    }

    fn source_hears(&mut self, event: source::Event) {
        let actions = self.source.on(event);
        self.source_acts(actions);
    }

    fn source_acts(&mut self, actions: Vec<source::Action>) {
        use source::{Action, End};
        for action in actions {
            match action {
                Action::Offer => self.say_there(Word::Offer),
                Action::Copy => self.source_work = Some(Work::Copy),
                Action::Switch => {
                    self.runs_here = false;
                    self.source_work = Some(Work::Switch);
                }
                Action::Release => self.source_work = Some(Work::Release),
                Action::Go => self.source_work = Some(Work::Go),
                Action::Abort(_) => self.say_there(Word::Abort),
                // Whatever was under way has been given up.
                Action::Resume => self.source_work = Some(Work::Resume),
                Action::Confess(_) => self.told = true,
                Action::Serve => self.source_work = None,
                Action::End(end) => {
                    self.source_work = None;
                    self.told |= matches!(end, End::Broken(_));
                }
            }
        }
    }

    fn destination_hears(&mut self, event: destination::Event) {
        let actions = self.destination.on(event);
        self.destination_acts(actions);
    }

    fn destination_acts(&mut self, actions: Vec<destination::Action>) {
        use destination::{Action, End};
        for action in actions {
            match action {
                Action::Accept => self.say_here(Word::Accept),
                Action::Refuse(_) => self.say_here(Word::Refuse),
                Action::Restore => self.destination_work = Some(Work::Restore),
                Action::Ready => self.say_here(Word::Ready),
                Action::Run => self.destination_work = Some(Work::Run),
                Action::Running => {
                    self.destination_work =
                        (self.destination.state() == destination::State::Running).then_some(Work::Fill);
                    self.say_here(Word::Running);
                }
                Action::Stay(_) => self.say_here(Word::Stay),
                Action::Complete => self.say_here(Word::Complete),
                Action::End(end) => {
                    self.destination_work = None;
                    if let End::MemoryLost(_) = end {
                        self.runs_there = false;
                        self.told = true;
                    }
                }
            }
        }
    }

    fn take_there(&mut self, word: Word) {
        use destination::Event;
        self.destination_hears(match word {
            Word::Offer => Event::Offered(Ok(())),
            Word::Switch => Event::Whole,
            Word::Go => Event::Go,
            Word::Abort => Event::Aborted(why()),
            other => panic!("{other:?} goes the other way"),
        });
    }

    fn take_here(&mut self, word: Word) {
        use source::Event;
        self.source_hears(match word {
            Word::Accept => Event::Accepted,
            Word::Refuse => Event::Refused(why()),
            Word::Ready => Event::Ready,
            Word::Running => Event::Running,
            Word::Stay => Event::Stays(why()),
            Word::Complete => Event::Complete,
            other => panic!("{other:?} goes the other way"),
        });
    }

    fn source_finishes(&mut self, work: Work, well: bool) {
        use source::Event;
        self.source_work = None;
        match (work, well) {
            (Work::Copy, true) => self.source_hears(Event::Converged),
            (Work::Switch, true) => self.say_there(Word::Switch),
            (Work::Release, true) => {
                self.disks_here = false;
                self.source_hears(Event::Released);
            }
            (Work::Release, false) => {
                // The last disk could not be let go of; the others are.
                self.disks_here = false;
                self.source_hears(Event::Failed(why()));
            }
            (Work::Go, true) => self.say_there(Word::Go),
            (Work::Go, false) => self.source_hears(Event::NotSent(why())),
            // A disk is locked for as long as somebody has it.
            (Work::Resume, true) if !self.disks_there => {
                (self.disks_here, self.runs_here, self.told) = (true, true, false);
                self.source_hears(Event::Resumed);
            }
            (Work::Resume, _) => self.source_hears(Event::NotResumed(why())),
            (_, false) => self.source_hears(Event::Failed(why())),
            (other, true) => panic!("{other:?} is not the source's"),
        }
    }

    fn destination_finishes(&mut self, work: Work, well: bool) {
        use destination::Event;
        self.destination_work = None;
        match (work, well) {
            (Work::Restore, true) => self.destination_hears(Event::Restored),
            (Work::Run, true) if !self.disks_here => {
                (self.disks_there, self.runs_there) = (true, true);
                self.destination_hears(Event::Ran);
            }
            (Work::Fill, true) => self.destination_hears(Event::Complete),
            // Pages that cannot be had are the link's doing, which is a step of its own.
            (Work::Fill, false) => self.destination_work = Some(Work::Fill),
            (_, _) => self.destination_hears(Event::Failed(why())),
        }
    }

    /// All that can happen next.
    fn steps(&self) -> Vec<World> {
        let mut next = Vec::new();
        let mut step = |change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            next.push(world);
        };
        if !self.cut {
            step(&|w| {
                w.cut = true;
                w.to_destination.clear();
                w.to_source.clear();
            });
        }
        if !self.source_dead {
            self.source_steps(&mut step);
        }
        if !self.destination_dead {
            self.destination_steps(&mut step);
        }
        next
    }

    fn source_steps(&self, step: &mut Step<'_>) {
        use source::Event;
        if !self.to_source.is_empty() {
            step(&|w| {
                let word = w.to_source.pop_front().unwrap();
                w.take_here(word);
            });
        }
        if let Some(work) = self.source_work {
            step(&|w| w.source_finishes(work, true));
            step(&|w| w.source_finishes(work, false));
        }
        if self.source.patience().is_some() {
            step(&|w| w.source_hears(Event::TimedOut));
        }
        // Also when it is not true: a link may fall silent and come back.
        step(&|w| w.source_hears(Event::Lost(why())));
        step(&|w| w.source_hears(Event::Cancelled(why())));
        // The operator has looked.
        if self.source.state() == State::Limbo && !self.may_run_there() {
            step(&|w| w.source_hears(Event::Retake));
        }
        step(&|w| {
            w.source_dead = true;
            w.guest_killed |= w.runs_here;
            (w.runs_here, w.disks_here, w.source_work) = (false, false, None);
            w.to_source.clear();
        });
    }

    fn destination_steps(&self, step: &mut Step<'_>) {
        use destination::Event;
        if !self.to_destination.is_empty() {
            step(&|w| {
                let word = w.to_destination.pop_front().unwrap();
                w.take_there(word);
            });
        }
        if self.to_destination.front() == Some(&Word::Offer) {
            step(&|w| {
                w.to_destination.pop_front();
                w.destination_hears(Event::Offered(Err(why())));
            });
        }
        if let Some(work) = self.destination_work {
            step(&|w| w.destination_finishes(work, true));
            step(&|w| w.destination_finishes(work, false));
        }
        if self.destination.patience().is_some() {
            step(&|w| w.destination_hears(Event::TimedOut));
        }
        step(&|w| w.destination_hears(Event::Lost(why())));
        step(&|w| {
            w.destination_dead = true;
            w.guest_killed |= w.runs_there;
            (w.runs_there, w.disks_there, w.destination_work) = (false, false, None);
            w.to_destination.clear();
        });
    }

    fn may_run_there(&self) -> bool {
        !self.destination_dead && (self.runs_there || self.destination.state() != destination::State::Ended)
    }

    /// Nothing happens any more unless somebody does something.
    fn rests(&self) -> bool {
        let source_waits = self.source.patience().is_some()
            || matches!(self.source.state(), State::Copying | State::Releasing | State::Returning);
        // Silence is noticed wherever it matters.
        let serving = self.source.state() == State::Serving;
        let destination_waits =
            !matches!(self.destination.state(), destination::State::Listening | destination::State::Ended);
        (self.source_dead || !(source_waits || serving)) && (self.destination_dead || !destination_waits)
    }

    fn check(&self) {
        assert!(!(self.runs_here && self.runs_there), "two guests run: {self:#?}");
        assert!(!(self.disks_here && self.disks_there), "two processes have the disks: {self:#?}");
        assert!(!self.runs_here || self.disks_here, "it runs without its disks: {self:#?}");
        assert!(!self.runs_there || self.disks_there, "it runs without its disks: {self:#?}");
        // Whoever kills the process that holds a standing guest has been the last to know.
        if self.rests() && !self.runs_here && !self.runs_there && !self.guest_killed && !self.source_dead {
            assert!(self.told, "nobody runs the guest and nobody was told: {self:#?}");
        }
    }
}

/// Visits every world that can be reached; returns them.
fn explore(mode: Mode) -> HashSet<World> {
    let first = World::new(mode);
    let mut seen = HashSet::from([first.clone()]);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        for next in world.steps() {
            if !seen.contains(&next) {
                next.check();
                seen.insert(next.clone());
                open.push(next);
            }
        }
    }
    seen
}

#[test]
fn at_most_one_guest_runs_and_never_none_while_nobody_is_told() {
    for mode in [Mode::PreCopy, Mode::PostCopy] {
        let worlds = explore(mode);
        println!("{mode:?}: {} worlds", worlds.len());
        // The worlds worth having are among them.
        let any = |what: &dyn Fn(&World) -> bool| worlds.iter().any(what);
        assert!(any(&|w| w.runs_there && w.source.state() == State::Ended), "it can move");
        assert!(any(&|w| w.runs_there && w.source.state() == State::Limbo), "and the source not know it");
        assert!(any(&|w| w.destination_dead && w.runs_here), "it can stay");
        assert!(any(&|w| w.source.state() == State::Limbo && !w.may_run_there()), "and nobody run it");
    }
}

/// The rule is load-bearing: a source that resumes by itself after `Go` makes two guests.
#[test]
fn a_source_that_resumed_by_itself_would_make_two() {
    let two = explore(Mode::PreCopy).into_iter().any(|mut world| {
        let silent = world.source.state() == State::Limbo;
        world.runs_here |= silent;
        world.runs_here && world.runs_there
    });
    assert!(two);
}

/// With nothing lost and nothing failing, it moves.
#[test]
fn a_quiet_world_moves_the_guest() {
    for mode in [Mode::PreCopy, Mode::PostCopy] {
        let mut world = World::new(mode);
        for _ in 0..100 {
            if let Some(word) = world.to_destination.pop_front() {
                world.take_there(word);
            } else if let Some(word) = world.to_source.pop_front() {
                world.take_here(word);
            } else if let Some(work) = world.source_work {
                world.source_finishes(work, true);
            } else if let Some(work) = world.destination_work {
                world.destination_finishes(work, true);
            }
            world.check();
        }
        assert!(world.runs_there && !world.runs_here && world.source.state() == State::Ended, "{world:#?}");
    }
}
