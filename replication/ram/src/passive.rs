//! The passive side's protocol thread: follows one active until it takes over, or is out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use mycelium_ram_core::message::Message;
use mycelium_ram_core::record::Record;
use mycelium_ram_core::replica::{Action, Event as Input, Expulsion, Replica, ReplicaConfig};
use mycelium_ram_core::settle::Reply;
use mycelium_ram_core::{EpochId, Generation, Member, Time, VmId};

use crate::clock::{self, PeerClock};
use crate::events::{Event, EventLog};
use crate::gate::micros;
use crate::ports::{Arbiter, PassiveMachine, Wire};
use crate::priority;
use crate::staging::{Inheritance, Job, Report, Staging};

const STATS_EVERY: Duration = Duration::from_millis(100);

/// What reaches the protocol thread.
#[derive(Debug)]
pub enum Inbox {
    /// A frame from the active; datagrams are handled at once, bundles go to staging.
    Frame(Bytes),
    /// The arbiter answered.
    Arbiter(Reply),
    /// The staging thread reports.
    Staging(Report),
    /// Stop being a replica: the operator wants it.
    Shutdown,
}

/// What a passive side is made of.
#[derive(Debug)]
pub struct PassiveParts<M> {
    /// Timing.
    pub cfg: ReplicaConfig,
    /// The VM.
    pub vm: VmId,
    /// This process.
    pub me: Member,
    /// The active it follows, and its generation.
    pub active: (Member, Generation),
    /// The way to the active.
    pub wire: Arc<dyn Wire>,
    /// The machine that waits.
    pub machine: M,
    /// Bytes of epochs the staging area may hold.
    pub staging_bytes_max: usize,
    /// The arbiter.
    pub arbiter: Arc<dyn Arbiter>,
    /// The timeline.
    pub events: EventLog,
}

/// How a passive side ended.
#[derive(Debug)]
pub enum Ended<M> {
    /// It takes over: resume the guest.
    Promoted(Box<Promotion<M>>),
    /// It is out; a new incarnation may begin from nothing.
    Expelled(Expulsion),
    /// The active's stream made no sense.
    Faulty(String),
    /// It was asked to.
    Shutdown,
}

/// Everything the new active needs.
#[derive(Debug)]
pub struct Promotion<M> {
    /// The guest, its output and its input.
    pub inheritance: Inheritance<M>,
    /// The record that makes this process the active.
    pub record: Record,
    /// The old active's clock as seen from here.
    pub active_clock: PeerClock,
    /// Arbiter proposals made.
    pub ops: u64,
}

impl<M> Promotion<M> {
    /// Real time from the moment the guest was stopped for the takeover epoch until now, never less. Ask right before
    /// the machine's clocks are set.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.active_clock.elapsed_since(self.inheritance.last.cut_at, clock::now()).unwrap_or_default()
    }
}

struct Passive {
    core: Replica,
    wire: Arc<dyn Wire>,
    jobs: Sender<Job>,
    arbiter: Arc<dyn Arbiter>,
    events: EventLog,
    progress: Arc<AtomicU64>,
    active_clock: PeerClock,
    actions: Vec<Action>,
    bytes: u64,
    listed: bool,
    next_stats: Time,
    verdict: Option<Verdict>,
}

enum Verdict {
    Promote(EpochId, Record),
    Expelled(Expulsion),
    Faulty(String),
    Shutdown,
}

/// Follows the active. Blocks until the end.
///
/// # Errors
/// When the staging thread cannot be started.
///
/// # Panics
/// When the staging thread panicked: the image is then unknown and must not run.
pub fn run<M: PassiveMachine>(
    parts: PassiveParts<M>,
    inbox: &Receiver<Inbox>,
    to_inbox: &Sender<Inbox>,
) -> std::io::Result<Ended<M>> {
    priority::beat();
    let now = clock::now();
    let progress = Arc::new(AtomicU64::new(0));
    let (jobs, from_protocol) = channel();
    let staging = Staging::new(parts.machine, parts.staging_bytes_max, progress.clone());
    let reports = to_inbox.clone();
    let staging_thread = std::thread::Builder::new()
        .name("staging".into())
        .spawn(move || staging.run(&from_protocol, |r| drop(reports.send(Inbox::Staging(r)))))?;
    let mut passive = Passive {
        core: Replica::new(parts.cfg, parts.vm, parts.me, parts.active, now),
        wire: parts.wire,
        jobs,
        arbiter: parts.arbiter,
        events: parts.events,
        progress,
        active_clock: PeerClock::default(),
        actions: Vec::new(),
        bytes: 0,
        listed: false,
        next_stats: now,
        verdict: None,
    };
    let verdict = passive.serve(inbox);
    passive.wire.close();
    if let Verdict::Promote(epoch, _) = &verdict {
        let _ = passive.jobs.send(Job::Finish(*epoch));
    }
    let (active_clock, ops) = (passive.active_clock, passive.core.ops());
    // Without a takeover it is the end of the jobs that ends the thread; the machine, its taps and memory go with it.
    drop(passive);
    let inherited = staging_thread.join().expect("the staging thread panicked");
    Ok(match (verdict, inherited) {
        (Verdict::Promote(_, record), Ok(inheritance)) => {
            Ended::Promoted(Box::new(Promotion { inheritance, record, active_clock, ops }))
        }
        (Verdict::Promote(epoch, _), Err(_)) => {
            Ended::Faulty(format!("the staging area does not hold {epoch}, which it had acknowledged"))
        }
        (Verdict::Expelled(why), _) => Ended::Expelled(why),
        (Verdict::Faulty(why), _) => Ended::Faulty(why),
        (Verdict::Shutdown, _) => Ended::Shutdown,
    })
}

impl Passive {
    /// Everything that has arrived is handed to the core before time is judged.
    fn serve(&mut self, inbox: &Receiver<Inbox>) -> Verdict {
        loop {
            match inbox.recv_timeout(self.core.next_tick().since(clock::now())) {
                Ok(first) => {
                    self.take(first);
                    while let Ok(next) = inbox.try_recv() {
                        self.take(next);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Verdict::Shutdown,
            }
            self.feed(Input::Progress(self.progress.load(Ordering::Relaxed)));
            self.feed(Input::Tick);
            self.tell();
            if let Some(verdict) = self.verdict.take() {
                return verdict;
            }
        }
    }

    fn take(&mut self, item: Inbox) {
        match item {
            Inbox::Frame(frame) => self.take_frame(frame),
            Inbox::Arbiter(reply) => self.feed(Input::Arbiter(reply)),
            Inbox::Staging(Report::Whole(epoch)) => self.whole(epoch),
            Inbox::Staging(Report::Faulty(e)) => self.verdict = Some(Verdict::Faulty(e.to_string())),
            Inbox::Shutdown => self.verdict = Some(Verdict::Shutdown),
        }
    }

    fn take_frame(&mut self, frame: Bytes) {
        // A heartbeat, or word that the guest is ours to take; everything else is staging's, decoded there.
        if !matches!(frame.get(1), Some(4 | 9)) {
            self.bytes += frame.len() as u64;
            let _ = self.jobs.send(Job::Frame(frame));
            return;
        }
        match Message::decode(&frame) {
            Ok(Message::Heartbeat(hb)) => {
                self.active_clock.heard(clock::now(), hb.sent_at, hb.echo);
                self.feed(Input::Heartbeat(hb));
            }
            Ok(Message::Yield(said)) => self.feed(Input::Yielded(said)),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a datagram cannot be read"),
        }
    }

    /// Acknowledges a whole epoch and has it applied, unless the takeover epoch is fixed already.
    fn whole(&mut self, epoch: EpochId) {
        if self.core.may_stage() {
            self.feed(Input::Staged(epoch));
            let _ = self.jobs.send(Job::Apply(epoch));
        }
    }

    fn feed(&mut self, input: Input) {
        let mut actions = std::mem::take(&mut self.actions);
        self.core.handle(clock::now(), input, &mut actions);
        for action in actions.drain(..) {
            self.act(action);
        }
        self.actions = actions;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Heartbeat(hb) => self.wire.datagram(Message::Heartbeat(hb).encode()),
            Action::Arbiter(request) => self.arbiter.ask(request),
            Action::Suspect(why) => {
                let detector = self.core.detector();
                let (silent, limit) = (detector.silence(), detector.silence_limit());
                self.events.note(Event::Suspect {
                    why: format!("{why:?}").to_lowercase(),
                    silent_us: micros(silent),
                    limit_us: micros(limit),
                });
            }
            Action::Taking => {
                self.events.note(Event::Taking { epoch: self.core.staged().map_or(0, |e| e.0) });
            }
            Action::Promote(epoch, record) => {
                self.events.note(Event::Won { generation: record.generation.0, epoch: epoch.0 });
                self.verdict = Some(Verdict::Promote(epoch, record));
            }
            Action::Expelled(why) => {
                self.events.note(Event::Expelled { reason: why.to_string() });
                self.verdict = Some(Verdict::Expelled(why));
            }
        }
    }

    fn tell(&mut self) {
        let listed = self.core.is_listed();
        if listed != self.listed {
            self.listed = listed;
            self.events.note(Event::Listed { listed });
        }
        let now = clock::now();
        if now >= self.next_stats {
            self.next_stats = now + STATS_EVERY;
            let staged = self.core.staged().map_or(0, |e| e.0);
            self.events.note(Event::ReplicaStats { staged, applied: staged, bytes: self.bytes });
        }
    }
}
