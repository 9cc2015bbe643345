//! The source's driver: carries out what [`Source`] decides.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use endophyte_api::MigratePhase;
use endophyte_migration::message::{DiskFacts, Mode, Offer};
use endophyte_migration::source::{Action, End, Event, State};
use endophyte_migration::{Downtime, Message, PageDigest, Rounds, Source};
use endophyte_vmm::machine::Machine;
use mycelium_ram_core::PageSet;
use rhizomorph_link::{BundleReceipt, DialConfig, Identity, LinkOptions, PathSpec, dial};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::peer::{Heard, LOOK_EVERY, Peer, ends};
use super::switch::Stopwatch;
use super::words::{Teller, Wish};
use crate::desk::Desk;

/// While nothing but silence ends a wait, it is looked at this often.
const IDLE: Duration = Duration::from_secs(1);

/// One migration, at its source.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) core: Source,
    pub(super) machine: Arc<Machine>,
    pub(super) desk: Arc<Desk>,
    pub(super) peer: Peer,
    pub(super) wish: Wish,
    pub(super) tell: Teller,
    pub(super) rounds: Rounds,
    pub(super) digest: PageDigest,
    /// Messages of memory sent.
    pub(super) messages: u64,
    /// Pages the destination does not have as they are now.
    pub(super) left: PageSet,
    /// Sending what is left must be done by then.
    pub(super) deadline: Option<Instant>,
    /// What was heard while something else was being done.
    pub(super) heard: VecDeque<Heard>,
    pub(super) clock: Stopwatch,
    pub(super) entered: Instant,
    todo: VecDeque<Action>,
    end: Option<End>,
    confession: Option<String>,
    last_word: Option<BundleReceipt>,
    // After the link, whose tasks it runs.
    _runtime: Runtime,
}

/// Where the driver stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The guest is to be paused: that is for the thread that keeps the VM.
    BeforeSwitch,
    /// The guest stands and nobody here may let it go on.
    Limbo,
    /// It is over.
    Ended,
}

impl Session {
    /// Reaches the destination.
    pub(super) fn open(
        machine: Arc<Machine>,
        desk: Arc<Desk>,
        identity: &Identity,
        wish: Wish,
        (post, inbox): (Sender<Heard>, Receiver<Heard>),
    ) -> Result<Self, String> {
        let runtime = super::peer::runtime().map_err(|error| error.to_string())?;
        let config = DialConfig {
            identity: identity.clone(),
            peer: wish.to.key,
            paths: wish.to.addrs.iter().map(|addr| PathSpec::from(*addr)).collect(),
            label: Bytes::copy_from_slice(machine.spec().name.as_bytes()),
            options: LinkOptions::default(),
        };
        let pages = machine.ram().page_count();
        let mut tell = Teller::new(wish.tell.clone(), pages);
        tell.enter(MigratePhase::Connecting);
        let link = runtime.block_on(async {
            let mut dialing = std::pin::pin!(dial(config));
            loop {
                if let Ok(dialed) = timeout(LOOK_EVERY, &mut dialing).await {
                    return dialed.map_err(|error| format!("cannot reach {}: {error}", wish.to));
                }
                if let Ok(Heard::Cancel(why)) = inbox.try_recv() {
                    return Err(why);
                }
            }
        })?;
        let peer = Peer::start(runtime.handle().clone(), link, (post, inbox));
        Ok(Self {
            core: Source::new(wish.mode),
            desk,
            peer,
            tell,
            rounds: Rounds::new(wish.downtime),
            digest: PageDigest::zeros(pages),
            messages: 0,
            left: PageSet::empty(pages),
            deadline: None,
            heard: VecDeque::new(),
            clock: Stopwatch::default(),
            entered: Instant::now(),
            todo: VecDeque::new(),
            end: None,
            confession: None,
            last_word: None,
            machine,
            wish,
            _runtime: runtime,
        })
    }

    /// Everything before the switch; from a thread that does not keep the VM.
    pub(super) fn approach(&mut self) -> Stop {
        self.todo = self.core.begin().into();
        self.drive(true)
    }

    /// The switch and what follows; from the thread that keeps the VM.
    pub(super) fn hand_over(&mut self) -> Stop {
        // Somebody may have changed his mind while the order was on its way here.
        if let Some(event) = self.interrupted() {
            self.todo.clear();
            self.take(event);
        }
        self.drive(false)
    }

    /// In limbo: takes what has come.
    pub(super) fn look(&mut self) -> Stop {
        while let Some(heard) = self.peer.overhear() {
            if let Some(event) = self.understand(heard) {
                self.take(event);
            }
        }
        self.drive(false)
    }

    /// In limbo: the operator is certain that the guest does not run there.
    pub(super) fn retake(&mut self) -> Stop {
        self.clock.held = false;
        self.take(Event::Retake);
        self.drive(false)
    }

    pub(super) fn ended(&self) -> Option<&End> {
        self.end.as_ref()
    }

    pub(super) fn confession(&self) -> &str {
        self.confession.as_deref().unwrap_or_default()
    }

    pub(super) fn downtime(&self) -> &Downtime {
        &self.clock.downtime
    }

    fn drive(&mut self, approach: bool) -> Stop {
        loop {
            while let Some(action) = self.todo.pop_front() {
                if approach && action == Action::Switch {
                    self.todo.push_front(action);
                    return Stop::BeforeSwitch;
                }
                if let Some(event) = self.act(action) {
                    self.take(event);
                }
            }
            match self.core.state() {
                State::Ended => return Stop::Ended,
                State::Limbo => return Stop::Limbo,
                _ => {
                    let event = self.wait();
                    self.take(event);
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        tracing::debug!(state = ?self.core.state(), ?event, "migration");
        let before = self.core.state();
        self.todo.extend(self.core.on(event));
        if self.core.state() != before {
            self.entered = Instant::now();
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Offer => self.offer(),
            Action::Copy => Some(self.copy()),
            Action::Switch => self.switch().err(),
            Action::Release => Some(self.release()),
            Action::Go => self.peer.say(&Message::Go).err().map(Event::NotSent),
            Action::Abort(why) => {
                self.last_word = self.peer.say(&Message::Abort(why)).ok();
                None
            }
            Action::Resume => Some(match self.resume() {
                Ok(()) => Event::Resumed,
                Err(why) => Event::NotResumed(why),
            }),
            Action::Confess(what) => {
                self.confession = Some(what);
                None
            }
            Action::Serve => Some(self.serve()),
            Action::End(end) => {
                self.close(&end);
                self.end = Some(end);
                None
            }
        }
    }

    fn offer(&self) -> Option<Event> {
        let failed = |why: String| Some(Event::Failed(why));
        if self.machine.ram().is_filling() {
            return failed("the VM's own memory is still arriving; try again when that is done".to_owned());
        }
        let fingerprint = match serde_json::to_vec(&self.machine.fingerprint()) {
            Ok(json) => Bytes::from(json),
            Err(error) => return failed(error.to_string()),
        };
        let disks = self.machine.disk_sizes().into_iter();
        let disks = disks.map(|disk| DiskFacts { serial: disk.serial, bytes: disk.bytes }).collect();
        let offer = Message::Offer(Offer { fingerprint, disks, mode: self.wish.mode });
        self.peer.say(&offer).err().map(Event::Lost)
    }

    /// Waits for something to happen.
    fn wait(&mut self) -> Event {
        loop {
            let left = match self.core.patience().map(|patience| patience.checked_sub(self.entered.elapsed()))
            {
                Some(None) => return Event::TimedOut,
                Some(Some(left)) => left,
                None => IDLE,
            };
            let heard = self.heard.pop_front().or_else(|| self.peer.hear(left.min(IDLE)));
            if let Some(event) = heard.and_then(|heard| self.understand(heard)) {
                return event;
            }
        }
    }

    /// What is heard, as an event. Pages that are asked for are sent on the way.
    pub(super) fn understand(&mut self, heard: Heard) -> Option<Event> {
        Some(match heard {
            Heard::Lost(why) => Event::Lost(why),
            Heard::Cancel(why) => Event::Cancelled(why),
            Heard::Message(Message::Accept) => Event::Accepted,
            Heard::Message(Message::Refuse(why)) => Event::Refused(why),
            Heard::Message(Message::Stay(why)) => Event::Stays(why),
            Heard::Message(Message::Complete) => Event::Complete,
            Heard::Message(Message::Want(want)) => return self.give(want).err(),
            Heard::Message(Message::Ready { restore_us }) => {
                self.is_there(restore_us);
                Event::Ready
            }
            Heard::Message(Message::Running { disks_us, resume_us }) => {
                self.arrived(disks_us, resume_us);
                Event::Running
            }
            Heard::Message(_) => Event::Lost("it says what only a source says".to_owned()),
        })
    }

    /// Whether something ends what is being done, to be asked between two pieces of it.
    pub(super) fn interrupted(&mut self) -> Option<Event> {
        interruption(&self.peer, &mut self.heard, self.deadline)
    }

    /// What has to be done when it is over.
    fn close(&mut self, end: &End) {
        if matches!(end, End::Stayed(_))
            && let Err(error) = self.machine.stop_dirty_tracking()
        {
            tracing::warn!(%error, "dirty tracking goes on, which costs the guest some speed");
        }
        if let Some(receipt) = self.last_word.take() {
            let until = Instant::now() + Duration::from_secs(1);
            let late = || (Instant::now() >= until).then(|| String::from("late"));
            let _ = self.peer.settle(receipt, late);
        }
    }

    pub(super) fn is_post_copy(&self) -> bool {
        self.wish.mode == Mode::PostCopy
    }
}

/// What ends whatever is being done; all else that was heard is kept for its time.
pub(super) fn interruption(
    peer: &Peer,
    kept: &mut VecDeque<Heard>,
    deadline: Option<Instant>,
) -> Option<Event> {
    if deadline.is_some_and(|at| Instant::now() >= at) {
        return Some(Event::Failed("sending the last pages took too long".to_owned()));
    }
    while let Some(heard) = peer.overhear() {
        let event = ends(&heard);
        if event.is_some() {
            return event;
        }
        kept.push_back(heard);
    }
    None
}
