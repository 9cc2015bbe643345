//! The destination's driver: carries out what [`Destination`] decides.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use endophyte_migration::destination::{Action, End, Event, State};
use endophyte_migration::limits::{ANSWER_WAIT, FAULT_THREADS, RUNNING_WAIT};
use endophyte_migration::message::{DiskFacts, Mode, Offer, Pages, Switch};
use endophyte_migration::{Destination, Downtime, Message, PageDigest, batch, runs};
use endophyte_snapshot::lazy::Userfault;
use endophyte_vmm::machine::{Machine, MachineFingerprint, RestoreOptions};
use mycelium_ram_core::{PageIndex, PageSet};
use rhizomorph_link::{Identity, IncomingLink, LinkListener, LinkOptions, ListenConfig};
use tokio::runtime::Runtime;

use super::copy::digest_of;
use super::peer::{Heard, Peer};
use super::remote::RemotePages;
use super::words::micros;
use crate::announce::Announcer;
use crate::cli::RunArgs;
use crate::desk::{Allowed, Desk};
use crate::exit::{Exit, Failure, OrExit};
use crate::signals::Signals;

/// State of a process that waits for a VM, on the board.
pub(crate) const INCOMING: &str = "incoming";

/// While only silence ends a wait, things are looked at this often.
const IDLE: Duration = Duration::from_millis(100);

/// The open door for a VM.
#[derive(Debug)]
pub(crate) struct Incoming {
    listener: LinkListener,
    runtime: Runtime,
    userfault: Option<Userfault>,
}

/// Everything of the process that the arriving guest gets.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) machine: Arc<Machine>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) announcer: Arc<Announcer>,
}

impl Incoming {
    /// Opens it, if the arguments ask for it.
    pub(crate) fn open(
        args: &RunArgs,
        identity: &Identity,
        allowed: &Allowed,
        desk: &Desk,
    ) -> Result<Option<Self>, Exit> {
        if args.incoming.is_empty() {
            return Ok(None);
        }
        allowed.set(args.allow.iter().copied());
        let runtime = super::peer::runtime().or_exit(Failure::Host)?;
        let config = ListenConfig {
            identity: identity.clone(),
            allow: allowed.list(),
            binds: args.incoming.clone(),
            options: LinkOptions::default(),
        };
        let listener = {
            let _inside = runtime.enter();
            LinkListener::bind(config).or_exit(Failure::Host)?
        };
        desk.listens(identity.peer_key(), listener.local_addrs());
        Ok(Some(Self { listener, runtime, userfault: None }))
    }

    /// With what it takes for post-copy, if the kernel lets us.
    pub(crate) fn serving(self, userfault: Option<Userfault>) -> Self {
        Self { userfault, ..self }
    }

    /// Waits for a VM until it runs here. `false`: a signal came first.
    pub(crate) fn receive(mut self, host: &Host, signals: &Signals) -> Result<bool, Exit> {
        let latch = signals.latch().or_exit(Failure::Host)?;
        host.desk.board.send_modify(|s| INCOMING.clone_into(&mut s.state));
        loop {
            let link = self.runtime.block_on(async {
                tokio::select! {
                    link = self.listener.accept() => Some(link),
                    () = latch.wait() => None,
                }
            });
            let link = match link {
                None => return Ok(false),
                Some(None) => return Err(anyhow!("the listener ended")).or_exit(Failure::Host),
                Some(Some(link)) => link,
            };
            let postcopy = self.userfault.is_some();
            if let Some(mut arrival) = Arrival::meet(host.clone(), link, &self.runtime, signals, postcopy)? {
                arrival.userfault = self.userfault.take();
                arrival.door = Some(self);
                return arrival.arrive();
            }
        }
    }
}

/// One VM on its way here.
#[derive(Debug)]
struct Arrival {
    core: Destination,
    host: Host,
    peer: Peer,
    digest: PageDigest,
    /// Pages that are not zero any more.
    written: PageSet,
    missing: PageSet,
    /// Messages of memory taken.
    messages: u64,
    switch: Option<(Switch, Instant)>,
    /// What this side's steps took.
    took: Downtime,
    todo: VecDeque<Action>,
    entered: Instant,
    end: Option<End>,
    stopped: bool,
    userfault: Option<Userfault>,
    /// After the link, whose tasks it runs.
    door: Option<Incoming>,
}

impl Arrival {
    /// Compares machines with whoever has connected; `None` if his is another one.
    fn meet(
        host: Host,
        link: IncomingLink,
        runtime: &Runtime,
        signals: &Signals,
        postcopy: bool,
    ) -> Result<Option<Self>, Exit> {
        let (post, inbox) = channel();
        let stop = post.clone();
        let handle = runtime.handle().clone();
        let peer = Peer::start(handle, (link.sender, link.receiver), (post, inbox));
        let Some(Heard::Message(Message::Offer(offer))) = peer.hear(ANSWER_WAIT) else {
            tracing::warn!("a source did not make an offer");
            return Ok(None);
        };
        let pages = host.machine.ram().page_count();
        let mut arrival = Self {
            core: Destination::default(),
            digest: PageDigest::zeros(pages),
            written: PageSet::empty(pages),
            missing: PageSet::empty(pages),
            messages: 0,
            switch: None,
            took: Downtime::default(),
            todo: VecDeque::new(),
            entered: Instant::now(),
            end: None,
            stopped: false,
            userfault: None,
            door: None,
            host,
            peer,
        };
        arrival.core.set_mode(offer.mode);
        let verdict = judge(&offer, &arrival.host.machine, postcopy);
        let refused = verdict.is_err();
        arrival.take(Event::Offered(verdict));
        arrival.act_all();
        if refused {
            return Ok(None);
        }
        let why = "it was told to stop";
        signals.on_signal(move || drop(stop.send(Heard::Cancel(why.to_owned())))).or_exit(Failure::Host)?;
        Ok(Some(arrival))
    }

    /// Takes everything in; returns when the guest runs here, and leaves the rest to a thread.
    fn arrive(mut self) -> Result<bool, Exit> {
        while self.end.is_none() && self.core.state() != State::Running {
            let event = self.wait();
            self.take(event);
            self.act_all();
        }
        match self.end.take() {
            Some(End::Never(_)) if self.stopped => Ok(false),
            Some(End::Never(why) | End::MemoryLost(why)) => {
                Err(anyhow!("the VM did not come: {why}; its source has it")).or_exit(Failure::Peer)
            }
            moved @ (Some(End::Moved) | None) => {
                self.end = moved;
                let spawned = std::thread::Builder::new().name("arrival".into()).spawn(move || self.linger());
                spawned.or_exit(Failure::Host)?;
                Ok(true)
            }
        }
    }

    /// The guest runs: what it lacks still comes, and the source has to learn that it is not needed any more.
    fn linger(mut self) {
        while self.end.is_none() {
            let event = self.wait();
            self.take(event);
            self.act_all();
        }
        if let Some(End::MemoryLost(why)) = &self.end {
            self.host.machine.lose_memory(&format!("the source of the migration was lost: {why}"));
        }
        // The source closes the link when it has heard.
        let until = Instant::now() + RUNNING_WAIT;
        while Instant::now() < until && !matches!(self.peer.hear(IDLE), Some(Heard::Lost(_))) {}
    }

    fn take(&mut self, event: Event) {
        tracing::debug!(state = ?self.core.state(), ?event, "migration");
        let before = self.core.state();
        self.todo.extend(self.core.on(event));
        if self.core.state() != before {
            self.entered = Instant::now();
        }
    }

    fn act_all(&mut self) {
        while let Some(action) = self.todo.pop_front() {
            if let Some(event) = self.act(action) {
                self.take(event);
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Accept => self.say(&Message::Accept),
            Action::Refuse(why) => {
                tracing::warn!(%why, "a VM was refused");
                self.note(&format!("a VM was refused: {why}"));
                self.peer.part(&Message::Refuse(why));
                None
            }
            Action::Restore => {
                let begun = Instant::now();
                let restored = self.restore();
                self.took.restore_us = micros(begun.elapsed());
                Some(restored.map_or_else(Event::Failed, |()| Event::Restored))
            }
            Action::Ready => self.say(&Message::Ready { restore_us: self.took.restore_us }),
            Action::Run => Some(self.run()),
            Action::Running => {
                let Downtime { disks_us, resume_us, .. } = self.took;
                // It runs, whether or not the source hears of it.
                let _ = self.peer.say(&Message::Running { disks_us, resume_us });
                self.announce();
                None
            }
            Action::Stay(why) => {
                self.peer.part(&Message::Stay(why));
                None
            }
            Action::Complete => self.say(&Message::Complete),
            Action::End(end) => {
                self.end = Some(end);
                None
            }
        }
    }

    fn say(&self, message: &Message) -> Option<Event> {
        self.peer.say(message).err().map(Event::Lost)
    }

    fn note(&self, trouble: &str) {
        self.host.desk.board.send_modify(|s| s.last_trouble = Some(trouble.to_owned()));
    }

    fn wait(&mut self) -> Event {
        loop {
            if self.core.state() == State::Running && !self.host.machine.ram().is_filling() {
                return Event::Complete;
            }
            let left = match self.core.patience().map(|patience| patience.checked_sub(self.entered.elapsed()))
            {
                Some(None) => return Event::TimedOut,
                Some(Some(left)) => left.min(IDLE),
                None => IDLE,
            };
            if let Some(event) = self.peer.hear(left).and_then(|heard| self.understand(heard)) {
                return event;
            }
        }
    }

    fn understand(&mut self, heard: Heard) -> Option<Event> {
        let taken = match heard {
            Heard::Lost(why) => return Some(Event::Lost(why)),
            Heard::Cancel(why) if self.core.state() != State::Running => {
                self.stopped = true;
                return Some(Event::Failed(why));
            }
            Heard::Cancel(_) => return None,
            Heard::Message(Message::Abort(why)) => return Some(Event::Aborted(why)),
            Heard::Message(Message::Go) => return Some(Event::Go),
            Heard::Message(Message::Pages(pages)) if self.core.state() == State::Running => {
                self.supply(&pages)
            }
            Heard::Message(Message::Pages(pages)) => self.store(&pages),
            Heard::Message(Message::Missing(piece)) => {
                self.messages += 1;
                runs::read(&piece, &mut self.missing).map_err(|error| error.to_string())
            }
            Heard::Message(Message::Switch(switch)) => {
                self.switch = Some((switch, Instant::now()));
                Ok(())
            }
            Heard::Message(_) => Err("it says what only a destination says".to_owned()),
        };
        match taken {
            Err(why) => Some(Event::Failed(format!("what the source sends cannot be used: {why}"))),
            Ok(()) => self.is_whole().then_some(Event::Whole),
        }
    }

    fn is_whole(&self) -> bool {
        let all = self.switch.as_ref().is_some_and(|(switch, _)| switch.messages == self.messages);
        all && self.core.state() == State::Receiving
    }

    /// Pages of a guest that does not run yet.
    fn store(&mut self, pages: &Pages) -> Result<(), String> {
        self.messages += 1;
        let ram = self.host.machine.ram().clone();
        let (digest, written) = (&mut self.digest, &mut self.written);
        let read = batch::read(&pages.batch, ram.page_count(), |page, content| {
            digest.set(page, content);
            match content {
                Some(content) => {
                    written.insert(page);
                    ram.write_page(page, content).expect("the batch was checked");
                }
                // What was never written is zero and stays without memory.
                None if written.contains(page) => {
                    ram.write_page(page, &[0; 4096]).expect("the batch was checked");
                }
                None => {}
            }
        });
        read.map_err(|error| error.to_string())
    }

    /// Pages of a guest that runs.
    fn supply(&mut self, pages: &Pages) -> Result<(), String> {
        let machine = &self.host.machine;
        let mut failed = None;
        let read = batch::read(&pages.batch, machine.ram().page_count(), |page: PageIndex, content| {
            if let Err(error) = machine.supply(page, content) {
                failed = Some(error.to_string());
            }
        });
        read.map_err(|error| error.to_string())?;
        failed.map_or(Ok(()), Err)
    }

    fn restore(&mut self) -> Result<(), String> {
        let (switch, received) = self.switch.take().ok_or("nothing to restore")?;
        let here = if switch.verified { digest_of(self.host.machine.ram()) } else { self.digest.sum() };
        if here != switch.digest {
            return Err(format!("memory arrived damaged: digest {here:016x}, sent {:016x}", switch.digest));
        }
        if switch.mode == Mode::PostCopy {
            self.receive_lazily()?;
        }
        let elapsed = Duration::from_nanos(switch.elapsed_ns) + received.elapsed();
        let restored = self.host.machine.restore_state(&switch.state, RestoreOptions { elapsed });
        restored.map_err(|error| error.to_string())?;
        self.host.desk.tape.begin_at(switch.console_bytes);
        self.host.desk.board.send_modify(|s| s.held = switch.held);
        Ok(())
    }

    fn receive_lazily(&mut self) -> Result<(), String> {
        let userfault = self.userfault.take().ok_or("there is no userfaultfd")?;
        let source = RemotePages {
            missing: self.missing.clone(),
            wants: self.peer.wants.clone(),
            sender: self.peer.sender.clone(),
            runtime: self.peer.runtime.clone(),
        };
        let machine = &self.host.machine;
        let begun = machine.receive_lazily(Arc::new(source), &self.missing, userfault, FAULT_THREADS);
        begun.map_err(|error| error.to_string())
    }

    /// The guest is ours.
    fn run(&mut self) -> Event {
        let failed = |error: &dyn std::fmt::Display| Event::Failed(error.to_string());
        let machine = &self.host.machine;
        let begun = Instant::now();
        if let Err(error) = machine.take_disks() {
            return failed(&error);
        }
        self.took.disks_us = micros(begun.elapsed());
        let begun = Instant::now();
        machine.set_rx_enabled(true);
        if !self.host.desk.board.borrow().held
            && let Err(error) = machine.resume()
        {
            return failed(&error);
        }
        self.took.resume_us = micros(begun.elapsed());
        Event::Ran
    }

    fn announce(&self) {
        self.host.machine.announce();
        if let Err(error) = self.host.announcer.start() {
            tracing::warn!(%error, "switches learn the guest's new place only from what it sends");
        }
    }
}

/// What the destination says to an offer.
fn judge(offer: &Offer, machine: &Machine, postcopy: bool) -> Result<(), String> {
    let theirs: MachineFingerprint = serde_json::from_slice(&offer.fingerprint).map_err(|error| {
        format!("the description of the machine cannot be read ({error}); run the same release on both nodes")
    })?;
    let mut differences = machine.fingerprint().diff(&theirs);
    let mine = machine.disk_sizes().into_iter();
    let mine: Vec<_> = mine.map(|disk| DiskFacts { serial: disk.serial, bytes: disk.bytes }).collect();
    if mine.len() != offer.disks.len() {
        differences.push(format!("disks: {} here, {} there", mine.len(), offer.disks.len()));
    }
    let unlike = mine.iter().zip(&offer.disks).filter(|(mine, theirs)| mine != theirs);
    differences.extend(unlike.map(|(mine, theirs)| {
        format!(
            "disk {}: {} bytes here, {} of {} bytes there",
            mine.serial, mine.bytes, theirs.serial, theirs.bytes
        )
    }));
    if !differences.is_empty() {
        let all = differences.join("; ");
        return Err(format!("the two machines differ, a guest of one cannot go on in the other: {all}"));
    }
    if offer.mode == Mode::PostCopy && !postcopy {
        return Err("post-copy is not possible here: this process may not serve page faults (userfaultfd); use pre-copy".to_owned());
    }
    Ok(())
}
