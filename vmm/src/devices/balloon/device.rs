//! The balloon: its registers and its queues.

use std::time::{Duration, Instant};

use super::persist::BalloonSaved;
use super::reclaim::Reclaim;
use super::stats::ENTRY_BYTES;
use super::{BalloonMetrics, BalloonStats};
use crate::kvm::KvmError;
use crate::limits::{
    BALLOON_NUMBERS_MAX, BALLOON_REPORT_PAGES_MAX, BALLOON_STATS_INTERVAL, BALLOON_STATS_MAX,
    BALLOON_TURN_CHAINS, BALLOON_TURN_PAGES,
};
use crate::memory::{PAGE_BYTES, PageIndex};
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::threads::ThreadKind;
use crate::virtio::{Blueprint, ChainError, DeviceType, Function, Io, Place, Turn, read_image};

/// Queue numbers by the standard. What number 3 is for is not offered.
pub(crate) const INFLATE: u16 = 0;
pub(crate) const DEFLATE: u16 = 1;
pub(crate) const STATS: u16 = 2;
#[cfg(test)]
pub(crate) const REPORTING: u16 = 4;
/// Queues of a balloon.
const QUEUES: u16 = 5;

const DEVICE_TYPE: u16 = 5;
/// No class of PCI's own fits.
const CLASS_OTHER: [u8; 3] = [0, 0xff, 0];

const F_STATS_VQ: u32 = 1;
/// The guest may take pages out by itself when it is short of memory; nothing to do for the device.
const F_DEFLATE_ON_OOM: u32 = 2;
const F_PAGE_POISON: u32 = 4;
const F_REPORTING: u32 = 5;

/// Offsets of what the driver writes in `struct virtio_balloon_config`.
const ACTUAL: usize = 4;
const POISON: usize = 12;
const CONFIG_BYTES: usize = 16;

/// Bytes of a page number in a request.
const NUMBER_BYTES: usize = 4;

/// A balloon.
pub(crate) type BalloonDevice = Function<Balloon>;

/// What is behind the transport.
pub(crate) struct Balloon {
    /// What the host wants; becomes `target` when the guest may see it, which is not while it is paused.
    pub(super) wanted: u32,
    pub(super) registers: Registers,
    stats: Option<(Instant, BalloonStats)>,
    /// The guest is to be asked for new statistics.
    ask: bool,
    asked_at: Option<Instant>,
    numbers: Box<[u8; NUMBER_BYTES * BALLOON_NUMBERS_MAX]>,
    reclaim: Reclaim,
    metrics: BalloonMetrics,
}

/// Device configuration, as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    /// Pages the balloon should have.
    pub(super) target: u32,
    /// Pages the driver says it has.
    pub(super) actual: u32,
    /// Pattern the guest fills free pages with.
    pub(super) poison: u32,
}

/// How a balloon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonInfo {
    /// Pages of 4 KiB the guest is to give up.
    pub target_pages: u64,
    /// Pages it says it has given up.
    pub actual_pages: u64,
    /// What it last said about its memory; `None` if it never did.
    pub stats: Option<BalloonStats>,
    /// How old that is.
    pub stats_age: Option<Duration>,
}

/// What a queue is for, with what the driver accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Reporting,
    Nothing,
}

impl BalloonDevice {
    /// An empty balloon, paused.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn attach(place: Place<'_>) -> Result<BalloonDevice, KvmError> {
        let balloon = Balloon {
            wanted: 0,
            registers: Registers::default(),
            stats: None,
            ask: false,
            asked_at: None,
            numbers: Box::new([0; NUMBER_BYTES * BALLOON_NUMBERS_MAX]),
            reclaim: Reclaim::default(),
            metrics: BalloonMetrics::default(),
        };
        Function::new(place, &blueprint(), balloon)
    }

    /// Asks the guest to give up `pages` in all; it hears of it when it runs.
    pub(crate) fn set_target(&self, pages: u32) {
        self.lock().device.wanted = pages;
        self.ring(INFLATE);
    }

    /// What is known; asks the guest for news unless it was asked a moment ago.
    pub(crate) fn info(&self) -> BalloonInfo {
        let (info, ask) = self.with(|balloon, _| (balloon.info(), balloon.ask_again(Instant::now())));
        if ask {
            self.ring(STATS);
        }
        info
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> BalloonMetrics {
        BalloonMetrics { breakdowns: self.breakdowns(), ..self.lock().device.metrics }
    }
}

impl Balloon {
    fn info(&self) -> BalloonInfo {
        BalloonInfo {
            target_pages: u64::from(self.wanted),
            actual_pages: u64::from(self.registers.actual),
            stats: self.stats.map(|(_, stats)| stats),
            stats_age: self.stats.map(|(read_at, _)| read_at.elapsed()),
        }
    }

    fn ask_again(&mut self, now: Instant) -> bool {
        let due = self.asked_at.is_none_or(|at| now.duration_since(at) >= BALLOON_STATS_INTERVAL);
        if due {
            self.asked_at = Some(now);
            self.ask = true;
        }
        due
    }

    pub(super) fn forget_stats(&mut self) {
        (self.stats, self.ask, self.asked_at) = (None, false, None);
    }

    /// Shows the guest what the host wants.
    fn announce_target(&mut self, io: &mut Io<'_>) {
        if self.registers.target != self.wanted {
            self.registers.target = self.wanted;
            io.transport.signal_config();
        }
    }

    /// Takes requests of queue `index` with `take`, which returns the pages it dealt with, for one turn.
    fn work(
        &mut self,
        index: u16,
        io: &mut Io<'_>,
        take: fn(&mut Balloon, &mut Io<'_>) -> Result<u64, ChainError>,
    ) -> Result<Turn, ChainError> {
        let (mut pages, mut chains, mut turn) = (0, 0, Turn::More);
        while pages < BALLOON_TURN_PAGES && chains < BALLOON_TURN_CHAINS {
            if !io.next(index)? {
                turn = Turn::Idle;
                break;
            }
            pages += take(self, io)?;
            io.complete(index, 0)?;
            chains += 1;
        }
        if chains > 0 {
            io.signal(index)?;
        }
        Ok(turn)
    }

    fn inflate(&mut self, io: &mut Io<'_>) -> Result<u64, ChainError> {
        let pages = self.read_numbers(io)?;
        self.give_back(io);
        self.metrics.inflated_pages += pages;
        Ok(pages)
    }

    fn deflate(&mut self, io: &mut Io<'_>) -> Result<u64, ChainError> {
        let pages = self.read_numbers(io)?;
        self.metrics.deflated_pages += pages;
        Ok(pages)
    }

    /// Reads the page numbers of the chain popped last; returns how many.
    fn read_numbers(&mut self, io: &Io<'_>) -> Result<u64, ChainError> {
        if !io.chain.writable().is_empty() {
            return Err(ChainError::Direction);
        }
        let bytes = usize::try_from(io.chain.readable_bytes()).unwrap_or(usize::MAX);
        if bytes == 0 || bytes > self.numbers.len() || bytes % NUMBER_BYTES != 0 {
            return Err(ChainError::Length);
        }
        io.read(&mut self.numbers[..bytes])?;
        self.reclaim.clear();
        for number in self.numbers[..bytes].as_chunks().0 {
            self.reclaim.add_page(io.ram, u32::from_le_bytes(*number))?;
        }
        Ok((bytes / NUMBER_BYTES) as u64)
    }

    /// Takes a report: the buffers of the chain are the free pages themselves.
    fn report(&mut self, io: &mut Io<'_>) -> Result<u64, ChainError> {
        if io.chain.readable_bytes() > 0 {
            return Err(ChainError::Direction);
        }
        self.reclaim.clear();
        for (address, bytes) in io.chain.writable() {
            self.reclaim.add_range(io.ram, *address, *bytes)?;
        }
        let pages = io.chain.writable_bytes() / PAGE_BYTES as u64;
        let patterned = io.transport.negotiated(F_PAGE_POISON) && self.registers.poison != 0;
        if patterned || pages > BALLOON_REPORT_PAGES_MAX {
            self.metrics.kept_pages += pages;
            return Ok(0);
        }
        self.metrics.reported_pages += self.give_back(io);
        Ok(pages)
    }

    /// Gives the pages of the request in work back, as far as the host takes them; returns how many it took.
    fn give_back(&mut self, io: &Io<'_>) -> u64 {
        let mut given = 0;
        let filling = io.ram.is_filling();
        for (first, count) in self.reclaim.merge() {
            if filling {
                self.metrics.kept_pages += count;
                continue;
            }
            self.metrics.runs += 1;
            match io.ram.give_back(PageIndex(*first), *count) {
                Ok(()) => given += count,
                // The guest loses nothing: it may not count on what is in these pages, old content is as good as none.
                Err(error) => {
                    self.metrics.kept_pages += count;
                    tracing::warn!(%error, "pages the guest does not need stay allocated");
                }
            }
        }
        given
    }

    /// Returns the driver its buffer if statistics are wanted, and reads the one that is there, which stays queued:
    /// so no buffer has to be remembered over a pause.
    fn serve_stats(&mut self, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        while io.next(STATS)? {
            if self.stats.is_none() || !self.ask {
                self.read_stats(io)?;
            }
            if !std::mem::take(&mut self.ask) {
                io.unpop(STATS);
                return Ok(Turn::Idle);
            }
            io.complete(STATS, 0)?;
            io.signal(STATS)?;
        }
        // The driver is about to bring news by itself.
        self.ask = false;
        Ok(Turn::Idle)
    }

    fn read_stats(&mut self, io: &Io<'_>) -> Result<(), ChainError> {
        if !io.chain.writable().is_empty() {
            return Err(ChainError::Direction);
        }
        let mut entries = [0; ENTRY_BYTES * BALLOON_STATS_MAX];
        let read = io.read(&mut entries)?;
        self.stats = Some((Instant::now(), BalloonStats::parse(&entries[..read])));
        Ok(())
    }
}

fn role(index: u16, io: &Io<'_>) -> Role {
    match index {
        INFLATE => Role::Inflate,
        DEFLATE => Role::Deflate,
        STATS if io.transport.negotiated(F_STATS_VQ) => Role::Stats,
        _ if io.transport.negotiated(F_REPORTING) => Role::Reporting,
        _ => Role::Nothing,
    }
}

impl DeviceType for Balloon {
    type Saved = BalloonSaved;
    const SECTION: SectionId = SectionId::Balloon;

    fn config_read(&self, offset: usize, into: &mut [u8]) {
        read_image(&self.registers.image(), offset, into);
    }

    /// Freeing a gigabyte takes the host's kernel tens of milliseconds, which no card should wait for.
    fn own_thread(&self) -> Option<ThreadKind> {
        Some(ThreadKind::Balloon)
    }

    fn config_write(&mut self, offset: usize, data: &[u8], _: &mut Io<'_>) {
        self.registers.write(offset, data);
    }

    fn serve(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        self.announce_target(io);
        match role(index, io) {
            Role::Inflate => self.work(index, io, Balloon::inflate),
            Role::Deflate => self.work(index, io, Balloon::deflate),
            Role::Reporting => self.work(index, io, Balloon::report),
            Role::Stats => self.serve_stats(io),
            Role::Nothing => Ok(Turn::Idle),
        }
    }

    /// A driver that is not ready yet reads the target when it is.
    fn without_driver(&mut self, _: u16) -> Turn {
        self.registers.target = self.wanted;
        Turn::Idle
    }

    /// What was in the balloon is the guest's again.
    fn reset(&mut self, _: &mut Io<'_>) {
        (self.registers.actual, self.registers.poison) = (0, 0);
        self.forget_stats();
    }

    fn save(&self, out: &mut Payload<'_>) {
        self.save_own(out);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<BalloonSaved, StateError> {
        BalloonSaved::decode(fields)
    }

    fn restore(&mut self, saved: &BalloonSaved) {
        self.restore_own(saved);
    }
}

impl Registers {
    /// `struct virtio_balloon_config`: target, actual, hinting (not offered), poison.
    fn image(self) -> [u8; CONFIG_BYTES] {
        let mut image = [0; CONFIG_BYTES];
        image[..ACTUAL].copy_from_slice(&self.target.to_le_bytes());
        image[ACTUAL..ACTUAL + 4].copy_from_slice(&self.actual.to_le_bytes());
        image[POISON..].copy_from_slice(&self.poison.to_le_bytes());
        image
    }

    /// Takes what the driver may write, at any width.
    fn write(&mut self, offset: usize, data: &[u8]) {
        let mut image = self.image();
        for (byte, new) in image.iter_mut().skip(offset).zip(data) {
            *byte = *new;
        }
        let word = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
        (self.actual, self.poison) = (word(ACTUAL), word(POISON));
    }
}

fn blueprint() -> Blueprint {
    let bits = [F_STATS_VQ, F_DEFLATE_ON_OOM, F_PAGE_POISON, F_REPORTING].map(|bit| 1u64 << bit);
    Blueprint {
        device_type: DEVICE_TYPE,
        class: CLASS_OTHER,
        features: bits.iter().fold(0, |all, bit| all | bit),
        queues: QUEUES,
    }
}
