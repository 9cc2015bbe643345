//! The epoch thread: the only one that stops the guest.
//!
//! A cut, and what of it costs the guest time:
//!
//! ```text
//!   pause ─ harvest ─ owe ─ save state ─ copy pages ─ seal disks, gate ─ resume ─ │ encode ─ send parts ─ send end
//!   └──────────────────────── guest stopped ─────────────────────────────────┘    │ guest runs in the next epoch
//! ```
//! Harvesting clears the dirty log, so its result goes into the ledgers before anything else can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use mycelium_ram_core::disk::{DiskChange, DiskPartWriter};
use mycelium_ram_core::hot::HotPages;
use mycelium_ram_core::message::{EpochEnd, EpochPart, Message, Output, PartKind};
use mycelium_ram_core::page_codec::{PAGE_BYTES, Page, PartWriter};
use mycelium_ram_core::primary::CutDone;
use mycelium_ram_core::shadow::{Put, Shadow};
use mycelium_ram_core::stage::{content_hash, part_hash};
use mycelium_ram_core::{EpochId, IngressSeq, Member, PageIndex, PageLedger, PageSet, Time, state_codec};

use crate::clock;
use crate::disk_log::DiskLog;
use crate::disks::{DiskEpoch, Disks};
use crate::drill::{self, Phase};
use crate::events::{Event, EventLog};
use crate::gate::Gate;
use crate::gauges::{Bottleneck, Load};
use crate::ingress::IngressTap;
use crate::pause::{PauseFigures, Pauses, Steps};
use crate::ports::{ActiveMachine, PortError, SendFailed, Wire};

/// An idle loop still shows that it is alive this often.
const IDLE_BEAT: Duration = Duration::from_millis(50);
/// Rounds of copying the running guest before a seed's cut, at most.
const SEED_ROUNDS: usize = 6;
/// A seed's cut happens once this few pages are left to copy with the guest stopped.
const SEED_CUT_PAGES: u64 = 2048;

/// Pages that end an epoch which was to be long.
const PAGES_PENDING: u64 = 1024;
/// Pages that a guest which does nothing still writes: its clock's, its timers'.
const QUIET_PAGES: u64 = 16;

/// Percentiles take longer to read off than a short epoch takes.
const FIGURES_EVERY: Duration = Duration::from_millis(100);

/// What the protocol thread orders.
#[derive(Debug)]
pub enum Order {
    /// Seal this epoch.
    Cut(EpochId),
    /// Begin with a replica that has nothing.
    Seed(Member, Arc<dyn Wire>),
    /// Go on with a replica that kept epochs up to this one.
    Resend(Member, EpochId, Arc<dyn Wire>),
    /// A replica holds epochs up to this one.
    Acked(Member, EpochId),
    /// Stop sending to a replica.
    Drop(Member),
    /// Stop the guest until `Run` for the same reason.
    Pause(Hold),
    /// This reason to stand still is gone.
    Run(Hold),
    /// The guest has been stopped to go on elsewhere: what arrives for it is forwarded, until it goes on here after all.
    ForwardInput,
    /// Boot the guest anew.
    Reset,
    /// End the thread with the guest stopped for good.
    Stop,
}

/// Why a guest stands still between epochs. It goes on when no reason is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// The loss policy forbids to run unprotected.
    Policy,
    /// The operator wants it, or a policy that calls for the operator.
    Operator,
}

/// What the epoch thread reports.
#[derive(Clone, Debug)]
pub enum Report {
    /// The epoch is sealed and on its way; so many bytes of memory and disks changed in it.
    Sealed(EpochId, CutDone, u64),
    /// The epoch just sealed is not sent to this replica.
    Spared(Member, EpochId),
    /// With this epoch a replica has been sent everything it lacked.
    Filled(Member, EpochId),
    /// The open epoch has more pages than an epoch should.
    PagesPending,
    /// The cut failed; nothing is lost.
    CutFailed,
}

/// Figures of the epoch thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct EpochFigures {
    /// Epochs sealed.
    pub epochs: u64,
    /// Pages sent in epochs, first copies not among them.
    pub pages: u64,
    /// Bytes handed to links in epochs, first copies not among them.
    pub bytes: u64,
    /// Bytes handed to links for first copies.
    pub seed_bytes: u64,
    /// Guest stopped, per epoch.
    pub pause: PauseFigures,
    /// Bytes of the disks that a replica still lacks, and of all of them.
    pub disk_left: (u64, u64),
}

/// What both threads see.
#[derive(Debug, Default)]
pub struct Shared {
    /// Moves as long as the loop does.
    pub progress: AtomicU64,
    /// The newest epoch whose output has left, told to replicas so that they keep only later output.
    pub released: AtomicU64,
    /// Figures, replaced after each epoch.
    pub figures: std::sync::Mutex<EpochFigures>,
}

/// One replica's stream.
#[derive(Debug)]
struct Stream {
    wire: Arc<dyn Wire>,
    ledger: PageLedger,
    /// The newest epoch sent; none before the seed.
    sent: Option<EpochId>,
    acked: Option<EpochId>,
    /// Hashes of the parts sent of the epoch under way, in order.
    part_hashes: Vec<u64>,
}

impl Stream {
    /// A replica that is still digesting its seed gets the next epoch only when it has.
    fn is_ready(&self) -> bool {
        self.sent.is_none() || self.acked.is_some()
    }
}

/// What a cut took out of the guest for one replica.
#[derive(Debug)]
struct Sealed {
    member: Member,
    base: Option<EpochId>,
    pages: Vec<PageIndex>,
    content: Vec<u8>,
    /// Of each page that was compared with the shadow, in order: whether it differs from it.
    differs: Vec<Option<bool>>,
    outputs: Vec<Output>,
    disks: Vec<DiskChange>,
}

impl Sealed {
    fn contents(&self) -> impl Iterator<Item = (PageIndex, &Page)> {
        self.pages.iter().copied().zip(self.content.as_chunks().0)
    }
}

/// The thread's state.
#[derive(Debug)]
pub struct EpochLoop<M> {
    machine: M,
    gate: Arc<Gate>,
    ingress: Arc<IngressTap>,
    streams: BTreeMap<Member, Stream>,
    dirty: PageSet,
    tracking: bool,
    holds: BTreeSet<Hold>,
    state: Vec<u8>,
    /// The epoch before, and its state.
    last_state: Option<(EpochId, Vec<u8>)>,
    cut_at: Time,
    ingress_at_cut: IngressSeq,
    writer: PartWriter,
    bottleneck: Bottleneck,
    disks: Disks,
    shadow: Shadow,
    hot: HotPages,
    /// Copy buffers, kept between epochs so that a cut does not fault in fresh memory.
    spare: Vec<Vec<u8>>,
    pauses: Pauses,
    next_figures: Time,
    load: Load,
    cut_done: CutDone,
    cut_bytes: u64,
    figures: EpochFigures,
    shared: Arc<Shared>,
    events: EventLog,
}

impl<M: ActiveMachine> EpochLoop<M> {
    /// A loop around a machine that runs, or will by the first order.
    ///
    /// # Errors
    /// When the thread that copies disks cannot be started.
    pub fn new(
        machine: M,
        (gate, ingress, disks): (Arc<Gate>, Arc<IngressTap>, Arc<DiskLog>),
        shared: Arc<Shared>,
        events: EventLog,
        shadow_pages: usize,
    ) -> std::io::Result<Self> {
        let pages = machine.pages();
        Ok(Self {
            disks: Disks::new(&machine, disks)?,
            machine,
            gate,
            ingress,
            streams: BTreeMap::new(),
            dirty: PageSet::empty(pages),
            tracking: false,
            holds: BTreeSet::new(),
            state: Vec::new(),
            last_state: None,
            cut_at: Time(0),
            ingress_at_cut: IngressSeq(0),
            writer: PartWriter::default(),
            bottleneck: Bottleneck::default(),
            shadow: Shadow::new(pages, shadow_pages),
            hot: HotPages::none(pages),
            spare: Vec::new(),
            pauses: Pauses::new(),
            next_figures: Time(0),
            load: Load::default(),
            cut_done: CutDone { cost: Duration::ZERO, quiet: false },
            cut_bytes: 0,
            figures: EpochFigures::default(),
            shared,
            events,
        })
    }

    /// Runs until ordered to stop; then the guest is stopped for good. Returns the machine.
    pub fn run(mut self, orders: &Receiver<Order>, mut report: impl FnMut(Report)) -> M {
        crate::priority::work();
        loop {
            self.beat();
            match orders.recv_timeout(IDLE_BEAT) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(order) => self.obey(order, &mut report),
                Err(RecvTimeoutError::Timeout) => self.look_at_pages(&mut report),
            }
        }
        if self.holds.is_empty()
            && let Err(e) = self.machine.pause()
        {
            self.trouble(&e);
        }
        self.machine
    }

    fn obey(&mut self, order: Order, report: &mut impl FnMut(Report)) {
        match order {
            Order::Cut(epoch) => match self.cut(epoch) {
                Ok(sealed) => {
                    report(Report::Sealed(epoch, self.cut_done, self.cut_bytes));
                    let sent = |member: &Member| sealed.iter().any(|s| s.member == *member);
                    let spared = self.streams.keys().filter(|member| !sent(member));
                    spared.for_each(|member| report(Report::Spared(*member, epoch)));
                    self.disks.filled_by(epoch).into_iter().for_each(|m| report(Report::Filled(m, epoch)));
                    self.send_all(epoch, sealed);
                }
                Err(e) => {
                    self.trouble(&e);
                    report(Report::CutFailed);
                }
            },
            Order::Seed(member, wire) => self.begin(member, wire),
            Order::Resend(member, kept, wire) => self.go_on(member, kept, wire),
            Order::Acked(member, epoch) => self.acked(member, epoch),
            Order::Drop(member) => self.forget(member),
            Order::Pause(why) => self.halt(why),
            Order::Run(why) => self.unhalt(why),
            Order::ForwardInput => self.machine.forward_input(true),
            Order::Reset => self.reset(),
            Order::Stop => {}
        }
    }

    /// A guest that has been quiet may begin to write while its long epoch is open.
    fn look_at_pages(&mut self, report: &mut impl FnMut(Report)) {
        if !self.tracking {
            return;
        }
        match self.machine.dirty_pages() {
            Ok(pages) if pages > PAGES_PENDING || self.disks.are_pending() => report(Report::PagesPending),
            Ok(_) => {}
            Err(e) => self.trouble(&e),
        }
    }

    fn begin(&mut self, member: Member, wire: Arc<dyn Wire>) {
        if !self.tracking {
            match self.machine.start_tracking() {
                Ok(()) => self.tracking = true,
                Err(e) => return self.trouble(&e),
            }
            self.hot.close_all();
        }
        let ledger = PageLedger::owing_all(self.machine.pages());
        self.events.note(Event::Seeding { pages: self.machine.pages() });
        self.disks.begin(member);
        self.streams
            .insert(member, Stream { wire, ledger, sent: None, acked: None, part_hashes: Vec::new() });
    }

    fn go_on(&mut self, member: Member, kept: EpochId, wire: Arc<dyn Wire>) {
        self.disks.go_on(member, kept);
        if let Some(stream) = self.streams.get_mut(&member) {
            stream.ledger.acked(kept);
            stream.ledger.abort_after(kept);
            (stream.wire, stream.sent, stream.acked) = (wire, Some(kept), Some(kept));
        }
    }

    fn acked(&mut self, member: Member, epoch: EpochId) {
        self.disks.acked(member, epoch);
        if let Some(stream) = self.streams.get_mut(&member) {
            stream.acked = stream.acked.max(Some(epoch));
            stream.ledger.acked(epoch);
        }
    }

    fn forget(&mut self, member: Member) {
        self.streams.remove(&member);
        self.disks.forget(member, &self.machine);
        if self.streams.is_empty() && self.tracking {
            match self.machine.stop_tracking() {
                Ok(()) => self.tracking = false,
                Err(e) => self.trouble(&e),
            }
        }
    }

    fn halt(&mut self, why: Hold) {
        match self.machine.pause() {
            Ok(()) => {
                self.holds.insert(why);
                self.events.note(Event::Held { held: true });
            }
            Err(e) => self.trouble(&e),
        }
    }

    fn reset(&mut self) {
        let reset = self.stop_guest().and_then(|()| self.machine.reset());
        let all = PageSet::full(self.machine.pages());
        self.streams.values_mut().for_each(|s| s.ledger.owe(&all));
        match reset {
            Ok(()) => self.continue_guest(),
            Err(e) => self.trouble(&e),
        }
    }

    fn unhalt(&mut self, why: Hold) {
        if self.holds.remove(&why) && self.holds.is_empty() {
            self.machine.forward_input(false);
            self.machine.resume();
            self.events.note(Event::Held { held: false });
        }
    }

    /// Seals an epoch. On failure the guest goes on in the same epoch and no page is lost.
    fn cut(&mut self, epoch: EpochId) -> Result<Vec<Sealed>, PortError> {
        self.copy_seeds_early(epoch)?;
        self.disks.copy_at_once()?;
        drill::reached(Phase::Ending);
        let begun = clock::now();
        self.stop_guest()?;
        let busy = self.machine.busy();
        let taken = self.take_epoch(epoch);
        drill::reached(Phase::Paused);
        self.continue_guest();
        // A replica that lacks much is not to wait for a guest that does nothing.
        self.cut_done.quiet &= !self.disks.copy_next(&self.machine);
        let resumed = clock::now();
        if let Some(e) = self.disks.trouble() {
            self.trouble(&e);
        }
        let (sealed, [logged, saved, copied]) = taken?;
        self.pauses.add(Steps { begun, stopped: self.cut_at, logged, saved, copied, resumed });
        self.cut_done.cost = resumed.since(begun).mul_f64(self.load.share(busy, resumed));
        Ok(sealed)
    }

    fn stop_guest(&mut self) -> Result<(), PortError> {
        if self.holds.is_empty() { self.machine.pause() } else { Ok(()) }
    }

    fn continue_guest(&mut self) {
        if self.holds.is_empty() {
            self.machine.resume();
        }
    }

    /// With the guest stopped: everything that must be of one moment. Also says when log, state and pages had been read.
    fn take_epoch(&mut self, epoch: EpochId) -> Result<(Vec<Sealed>, [Time; 3]), PortError> {
        self.cut_at = clock::now();
        self.ingress_at_cut = self.ingress.delivered();
        let written = self.harvest()?;
        let logged = clock::now();
        self.state.clear();
        self.machine.save_state(&mut self.state)?;
        let saved = clock::now();
        let mut taken = Vec::new();
        let ready: Vec<Member> = self.streams.iter().filter(|(_, s)| s.is_ready()).map(|(m, _)| *m).collect();
        let disks = self.disks.seal(epoch, &ready);
        self.cut_bytes = written * PAGE_BYTES as u64 + disks.changed_bytes();
        for member in ready {
            taken.push(self.take_for(member, epoch, &disks));
        }
        let copied = clock::now();
        self.gate.seal();
        for sealed in &mut taken {
            sealed.outputs = self.gate.between(sealed.base.unwrap_or(epoch.prev()), epoch);
        }
        let silent = taken.iter().all(|sealed| sealed.outputs.is_empty());
        self.cut_done.quiet = silent && disks.is_quiet() && self.tracking && written <= QUIET_PAGES;
        Ok((taken, [logged, saved, copied]))
    }

    /// How many pages were written.
    fn harvest(&mut self) -> Result<u64, PortError> {
        if !self.tracking {
            return Ok(0);
        }
        let harvested = self.machine.harvest(&mut self.dirty, self.hot.open());
        // Even a failed harvest may have cleared part of the log: what it gave is owed.
        self.streams.values_mut().for_each(|s| s.ledger.owe(&self.dirty));
        let written = self.dirty.len();
        self.dirty.clear();
        harvested.map(|()| written)
    }

    fn take_for(&mut self, member: Member, epoch: EpochId, disks: &DiskEpoch) -> Sealed {
        let stream = self.streams.get_mut(&member).expect("listed by the caller");
        let batch = stream.ledger.send_in(epoch);
        let base = stream.sent.replace(epoch);
        let mut content = self.spare.pop().unwrap_or_default();
        let pages: Vec<PageIndex> = batch.iter().collect();
        content.resize(pages.len() * PAGE_BYTES, 0);
        for (page, room) in pages.iter().zip(content.as_chunks_mut().0) {
            self.machine.read_page(*page, room);
        }
        Sealed {
            member,
            base,
            pages,
            content,
            differs: Vec::new(),
            outputs: Vec::new(),
            disks: disks.for_replica(member),
        }
    }

    /// Sends what a new replica lacks while the guest runs, so that its cut has only the remainder to copy.
    fn copy_seeds_early(&mut self, epoch: EpochId) -> Result<(), PortError> {
        let fresh: Vec<Member> =
            self.streams.iter().filter(|(_, s)| s.sent.is_none()).map(|(m, _)| *m).collect();
        for member in fresh {
            let mut left = u64::MAX;
            for _ in 0..SEED_ROUNDS {
                let Some(stream) = self.streams.get_mut(&member) else { break };
                let owed = stream.ledger.owed().len();
                // A guest that dirties as fast as we send will not get better by trying.
                if owed <= SEED_CUT_PAGES || owed >= left {
                    break;
                }
                left = owed;
                let batch = stream.ledger.send_in(epoch);
                if self.send_early(member, epoch, &batch).is_err() {
                    self.streams.remove(&member);
                    break;
                }
                self.stop_guest()?;
                let harvested = self.harvest();
                self.continue_guest();
                harvested?;
            }
        }
        Ok(())
    }

    fn send_early(&mut self, member: Member, epoch: EpochId, batch: &PageSet) -> Result<(), SendFailed> {
        let mut writer = self.begin_parts();
        let mut page_content = [0; PAGE_BYTES];
        let mut pages = batch.iter().peekable();
        while let Some(page) = pages.next() {
            self.machine.read_page(page, &mut page_content);
            writer.push(page, &page_content, None);
            if writer.is_full() || pages.peek().is_none() {
                let payload = writer.finish();
                self.send_part(member, (epoch, None), PartKind::Pages, payload)?;
                writer.set_packing(self.bottleneck.is_link());
            }
        }
        self.writer = writer;
        Ok(())
    }

    /// A writer for parts that go out now.
    fn begin_parts(&mut self) -> PartWriter {
        let mut writer = std::mem::take(&mut self.writer);
        writer.set_packing(self.bottleneck.is_link());
        writer
    }

    /// Sends one part; its index follows from the hashes kept so far.
    fn send_part(
        &mut self,
        member: Member,
        (epoch, base): (EpochId, Option<EpochId>),
        kind: PartKind,
        payload: Bytes,
    ) -> Result<(), SendFailed> {
        let Some(stream) = self.streams.get_mut(&member) else { return Err(SendFailed::Closed) };
        let index = u32::try_from(stream.part_hashes.len()).expect("parts are bounded by the guest's size");
        stream.part_hashes.push(part_hash(kind, &payload));
        let wire = stream.wire.clone();
        self.push(&*wire, base, Message::Part(EpochPart { epoch, base, index, kind, payload }).encode())
    }

    fn send_all(&mut self, epoch: EpochId, mut sealed: Vec<Sealed>) {
        for part in &mut sealed {
            if self.send_epoch(epoch, part).is_err() {
                // Its pages stay in flight in the ledger: a new handshake aborts and returns them.
                tracing::debug!(member = %part.member, %epoch, "the link closed before the epoch was sent");
            }
        }
        self.remember(epoch, &sealed);
        // The buffer of the epoch before is the next one's.
        let spare = self.last_state.take().map(|(_, state)| state).unwrap_or_default();
        self.last_state = Some((epoch, std::mem::replace(&mut self.state, spare)));
        self.spare.extend(sealed.into_iter().map(|part| part.content));
        self.figures.epochs += 1;
        self.figures.disk_left = self.disks.lacking();
        let now = clock::now();
        if now >= self.next_figures {
            self.next_figures = now + FIGURES_EVERY;
            self.figures.pause = self.pauses.figures();
        }
        if let Ok(mut shared) = self.shared.figures.lock() {
            *shared = self.figures;
        }
    }

    fn send_epoch(&mut self, epoch: EpochId, sealed: &mut Sealed) -> Result<(), SendFailed> {
        let Sealed { member, base, .. } = *sealed;
        let mut writer = self.begin_parts();
        let (mut changed, mut differs) = (0, Vec::with_capacity(sealed.pages.len()));
        for (page, content) in sealed.contents() {
            let Some(stream) = self.streams.get(&member) else { return Err(SendFailed::Closed) };
            let held = self.shadow.get(page).filter(|_| stream.ledger.holds_shadow(page));
            let pushed = writer.push(page, content, held);
            changed += u64::from(pushed);
            differs.push(held.map(|_| pushed));
            if writer.is_full() {
                let payload = writer.finish();
                self.send_part(member, (epoch, base), PartKind::Pages, payload)?;
            }
        }
        if writer.pages() > 0 {
            let payload = writer.finish();
            self.send_part(member, (epoch, base), PartKind::Pages, payload)?;
        }
        self.writer = writer;
        sealed.differs = differs;
        if base.is_some() {
            self.figures.pages += changed;
        }
        if !sealed.pages.is_empty() {
            drill::reached(Phase::Sending);
        }
        self.send_disks(member, (epoch, base), &std::mem::take(&mut sealed.disks))?;
        self.send_end(member, epoch, base, std::mem::take(&mut sealed.outputs))
    }

    fn send_disks(
        &mut self,
        member: Member,
        which: (EpochId, Option<EpochId>),
        changes: &[DiskChange],
    ) -> Result<(), SendFailed> {
        let mut writer = DiskPartWriter::default();
        for change in changes {
            writer.push(change, |part| self.send_part(member, which, PartKind::Disks, part))?;
        }
        writer.finish().map_or(Ok(()), |part| self.send_part(member, which, PartKind::Disks, part))
    }

    /// Keeps what was sent in this epoch, so that the next change of a page is sent as its difference, and learns which
    /// pages change all the time.
    fn remember(&mut self, epoch: EpochId, sealed: &[Sealed]) {
        self.shadow.begin_epoch();
        for (n, part) in sealed.iter().enumerate() {
            let differs = part.differs.iter().copied().chain(std::iter::repeat(None));
            for ((page, content), differs) in part.contents().zip(differs) {
                // Replicas that are sent the same page are sent the same content.
                let known = sealed[..n].iter().any(|earlier| earlier.pages.binary_search(&page).is_ok());
                if known {
                    continue;
                }
                let put = self.shadow.put(page, content, differs);
                match put {
                    Put::Again { changed } => self.hot.seen(page, epoch, changed),
                    Put::New { displaced } => {
                        self.hot.seen(page, epoch, true);
                        displaced.into_iter().for_each(|page| self.hot.close(page));
                    }
                    Put::NoRoom => {}
                }
                if put.is_kept() {
                    self.streams.values_mut().for_each(|s| s.ledger.shadowed(page, epoch));
                }
            }
        }
    }

    fn send_end(
        &mut self,
        member: Member,
        epoch: EpochId,
        base: Option<EpochId>,
        outputs: Vec<Output>,
    ) -> Result<(), SendFailed> {
        let Some(stream) = self.streams.get_mut(&member) else { return Err(SendFailed::Closed) };
        let hashes = std::mem::take(&mut stream.part_hashes);
        let wire = stream.wire.clone();
        let known = self.last_state.as_ref().filter(|(epoch, _)| Some(*epoch) == base);
        let mut end = EpochEnd {
            epoch,
            base,
            parts: u32::try_from(hashes.len()).expect("parts are bounded by the guest's size"),
            content_hash: 0,
            cut_at: self.cut_at,
            released: EpochId(self.shared.released.load(Ordering::Relaxed)),
            ingress: self.ingress_at_cut,
            state: state_codec::encode(known.map(|(_, state)| &state[..]), &self.state),
            outputs,
        };
        end.content_hash = content_hash(hashes, &end);
        self.push(&*wire, base, Message::End(end).encode())
    }

    fn push(&mut self, wire: &dyn Wire, base: Option<EpochId>, mut frame: Bytes) -> Result<(), SendFailed> {
        let count = if base.is_some() { &mut self.figures.bytes } else { &mut self.figures.seed_bytes };
        *count += frame.len() as u64;
        let begun = clock::now();
        loop {
            // Waiting for a slow link is not hanging.
            self.beat();
            match wire.bundle(false, frame, IDLE_BEAT) {
                Err(SendFailed::Full(back)) => frame = back,
                done => {
                    self.bottleneck.sent(begun, clock::now());
                    return done;
                }
            }
        }
    }

    fn beat(&self) {
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
    }

    fn trouble(&self, error: &PortError) {
        tracing::error!(%error, "the epoch loop met an error; the guest goes on");
        self.events.note(Event::Trouble { what: error.to_string() });
    }
}
