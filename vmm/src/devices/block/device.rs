//! The disk: its registers, and what is under way.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mycelium_ram_core::disk::Change;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::engine::Engine;
use super::follow::Follower;
use super::image::{DiskImage, DiskThen, Geometry, ImageError};
use super::journal::{self, Journal};
use super::metrics::BlockMetrics;
use super::persist::BlockSaved;
use super::request::{Operation, SECTOR_BYTES};
use crate::devices::rate::Limiter;
use crate::irq;
use crate::kvm::KvmError;
use crate::limits::{DISK_CLEAR_SECTORS_MAX, DISK_REQUESTS_MAX, QUEUE_SIZE};
use crate::memory::{GuestRam, HostRange};
use crate::spec::DiskSpec;
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::threads::ThreadKind;
use crate::virtio::{Blueprint, ChainError, DeviceType, Found, Function, Io, Place, Turn, read_image};

const DEVICE_TYPE: u16 = 2;
const CLASS_STORAGE: [u8; 3] = [1, 0x80, 0];
/// Bytes of `struct virtio_blk_config`.
const CONFIG_BYTES: usize = 60;

/// A disk.
pub(crate) type Disk = Function<Block>;

/// What is behind the disk's transport.
pub(crate) struct Block {
    pub(super) geometry: Geometry,
    pub(super) serial: String,
    pub(super) queues: u16,
    pub(super) engine: Engine,
    /// Of the engine, whichever is in place.
    done: EventFd,
    pub(super) ram: Arc<GuestRam>,
    spec: DiskSpec,
    pub(super) follower: Option<Follower>,
    /// Of a replica's disk, and of one that was a replica's until its first flush.
    pub(super) journal: Option<Journal>,
    /// The image's file when it was opened, if it is open.
    found: Option<DiskThen>,
    /// By slot; `None` is free.
    pub(super) under_way: Vec<Option<Pending>>,
    pub(super) free: Vec<u16>,
    pub(super) limiter: Limiter,
    /// Queues that could not be worked off for lack of slots or rate.
    pub(super) waiting: Vec<bool>,
    /// Queues with answers the driver has not been told of.
    pub(super) answered: Vec<bool>,
    pub(super) metrics: BlockMetrics,
    /// Host addresses of the request in work.
    pub(super) memory: Vec<HostRange>,
}

/// What a disk is built on.
#[derive(Debug)]
pub(crate) enum Behind {
    /// An image that is open here.
    Open(DiskImage),
    /// One that another process works on until it is taken.
    Away(Geometry),
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) queue: u16,
    pub(super) head: u16,
    pub(super) operation: Operation,
    /// Guest address of the status byte.
    pub(super) status_at: u64,
    /// Guest memory it writes: (address, bytes).
    pub(super) into: Vec<(u64, u32)>,
}

impl Disk {
    /// A disk on an open image, or on one that is away and only known by its geometry; paused.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn attach(
        place: Place<'_>,
        spec: &DiskSpec,
        behind: Behind,
        follower: Option<Follower>,
    ) -> Result<Disk, KvmError> {
        let block = Block::new(spec, behind, follower, place).map_err(|e| {
            let code = e.raw_os_error().unwrap_or(libc::EIO);
            crate::kvm::refused("make an io_uring for a disk")(vmm_sys_util::errno::Error::new(code))
        })?;
        Function::new(place, &blueprint(spec), block)
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> BlockMetrics {
        BlockMetrics { breakdowns: self.breakdowns(), ..self.lock().device.metrics }
    }
}

impl Disk {
    /// Size of the disk, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().device.geometry.bytes
    }

    /// Its image's file as it was found when it was opened; `None` if it is not open here.
    pub(crate) fn found(&self) -> Option<DiskThen> {
        self.lock().device.found
    }

    /// Whether its image is not open in this process.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.lock().device.engine, Engine::Away)
    }

    /// A second handle of the image's file, for making writes last without holding up the disk.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(crate) fn file(&self) -> io::Result<Option<File>> {
        self.lock().device.engine.file().map(File::try_clone).transpose()
    }

    /// Makes everything last. The machine is paused.
    ///
    /// # Errors
    /// [`ImageError::Lost`].
    pub(crate) fn flush(&self) -> Result<(), ImageError> {
        self.lock().device.flush()
    }

    /// Makes everything last, and lets go of the image: its lock, what is cached of it, its files. The machine is paused.
    ///
    /// # Errors
    /// [`ImageError::Lost`]; the image is still held then.
    pub(crate) fn release(&self) -> Result<(), ImageError> {
        self.lock().device.release()
    }

    /// Opens the image, if it is away. The machine is paused.
    ///
    /// # Errors
    /// [`ImageError`]; it is away then as before.
    pub(crate) fn take(&self) -> Result<(), ImageError> {
        self.lock().device.take()
    }

    /// Has the disk look again for requests that had to wait.
    pub(crate) fn kick(&self) {
        irq::raise(&self.lock().device.done);
    }

    /// Whether its changes can be followed.
    pub(crate) fn is_followed(&self) -> bool {
        self.lock().device.follower.is_some()
    }

    /// Reads from the disk past the guest, which may be writing to it.
    ///
    /// # Errors
    /// The host's or the image's.
    pub(crate) fn read_beside(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let file = self.lock().device.engine.raw_file();
        match file {
            // Without the lock: the guest need not wait.
            Some(file) => file.read_exact_at(into, offset),
            None => self.read_at(offset, into),
        }
    }

    /// Makes a change that a guest elsewhere has made. The machine is paused.
    ///
    /// # Errors
    /// The host's or the image's.
    pub(crate) fn change(&self, change: &Change) -> io::Result<()> {
        self.lock().device.engine.change(change)
    }

    /// Makes good what a process before this one has promised of the disk. The machine has not run.
    ///
    /// # Errors
    /// [`ImageError::Journal`].
    pub(crate) fn recover(&self) -> Result<(), ImageError> {
        self.lock().device.recover()
    }

    /// From here on what is promised of the disk is journaled. The machine has not run.
    ///
    /// # Errors
    /// [`ImageError::NoJournal`].
    pub(crate) fn begin_journal(&self) -> Result<(), ImageError> {
        let mut inner = self.lock();
        let device = &mut inner.device;
        let path = device.spec.path.clone();
        match Journal::begin(&path) {
            Ok(journal) => device.journal = Some(journal),
            Err(source) => return Err(ImageError::NoJournal { path, source }),
        }
        Ok(())
    }

    /// Promises the changes of an epoch, which are to be made next. The machine is paused.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn promise<'a>(
        &self,
        epoch: u64,
        changes: impl Iterator<Item = &'a Change>,
    ) -> io::Result<()> {
        let mut inner = self.lock();
        let device = &mut inner.device;
        let Some(journal) = &mut device.journal else { return Ok(()) };
        if journal.is_long() && journal.is_made() {
            device.engine.flush()?;
            journal.empty()?;
        }
        journal.append(epoch, changes)
    }

    /// Epochs up to this one have been made.
    pub(crate) fn made_through(&self, epoch: u64) {
        self.lock().device.journal.iter_mut().for_each(|journal| journal.keep(epoch));
    }

    /// The guest goes on from the end of this epoch: what was promised of later ones is not to be.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn forget_after(&self, epoch: u64) -> io::Result<()> {
        self.lock().device.journal.as_mut().map_or(Ok(()), |journal| journal.forget_after(epoch))
    }

    /// Ends the journal: all that was promised has been made, and is made to last now. The guest may run.
    ///
    /// # Errors
    /// The host's; the journal is kept then.
    pub(crate) fn retire_journal(&self) -> io::Result<()> {
        let file = self.lock().device.engine.raw_file();
        if let Some(file) = file {
            // What takes long, without holding up the guest.
            file.sync_data()?;
        }
        self.lock().device.retire_journal()
    }

    /// Reads from the disk past the guest; for what it boots.
    ///
    /// # Errors
    /// The host's or the image's.
    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.lock().device.engine.read_at(offset, into)
    }
}

impl Block {
    fn new(
        spec: &DiskSpec,
        behind: Behind,
        follower: Option<Follower>,
        place: Place<'_>,
    ) -> io::Result<Block> {
        let done = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (geometry, found, engine) = match behind {
            Behind::Away(geometry) => (geometry, None, Engine::Away),
            Behind::Open(image) => {
                let (geometry, found) = (image.geometry, Some(image.found));
                (geometry, found, Engine::new(image, Arc::clone(place.ram), DISK_REQUESTS_MAX, &done)?)
            }
        };
        Ok(Block {
            geometry,
            serial: spec.serial.clone(),
            queues: spec.queues,
            engine,
            done,
            ram: Arc::clone(place.ram),
            spec: spec.clone(),
            follower,
            journal: None,
            found,
            under_way: std::iter::repeat_with(|| None).take(usize::from(DISK_REQUESTS_MAX)).collect(),
            free: (0..DISK_REQUESTS_MAX).rev().collect(),
            limiter: Limiter::new(spec.iops, spec.bytes_per_s)?,
            waiting: vec![false; usize::from(spec.queues)],
            answered: vec![false; usize::from(spec.queues)],
            metrics: BlockMetrics::default(),
            memory: Vec::with_capacity(usize::from(QUEUE_SIZE)),
        })
    }

    /// Before the guest is told of a flush of its own: what it wrote since must not be undone by what was promised before.
    pub(super) fn retire_journal(&mut self) -> io::Result<()> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        self.engine.flush()?;
        journal.empty()?;
        self.journal = None;
        Ok(())
    }

    fn recover(&self) -> Result<(), ImageError> {
        let path = &self.spec.path;
        let failed = |source| ImageError::Journal { path: path.clone(), source };
        let Some(file) = journal::left_behind(path, !self.spec.readonly).map_err(failed)? else {
            return Ok(());
        };
        if self.spec.readonly {
            return Err(failed(io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        let replayed = journal::replay(&file, self.geometry.bytes, |change| self.engine.change(change));
        let epochs = replayed.map_err(failed)?;
        self.engine.flush().and_then(|()| file.set_len(0)).and_then(|()| file.sync_all()).map_err(failed)?;
        tracing::info!(disk = %path.display(), epochs, "made good what the journal promised");
        Ok(())
    }

    fn flush(&self) -> Result<(), ImageError> {
        let lost = |source| ImageError::Lost { path: self.spec.path.clone(), source };
        self.engine.flush().map_err(lost)
    }

    fn release(&mut self) -> Result<(), ImageError> {
        self.flush()?;
        (self.engine, self.found) = (Engine::Away, None);
        Ok(())
    }

    fn take(&mut self) -> Result<(), ImageError> {
        if !matches!(self.engine, Engine::Away) {
            return Ok(());
        }
        let image = DiskImage::open(&self.spec)?;
        let (is, was) = (image.geometry.bytes, self.geometry.bytes);
        if is != was {
            return Err(ImageError::Resized { path: self.spec.path.clone(), is, was });
        }
        self.found = Some(image.found);
        let failed =
            |source| ImageError::Open { path: self.spec.path.clone(), readonly: self.spec.readonly, source };
        self.engine =
            Engine::new(image, Arc::clone(&self.ram), DISK_REQUESTS_MAX, &self.done).map_err(failed)?;
        self.recover()
    }

    pub(super) fn serial_field(&self) -> [u8; crate::limits::DISK_SERIAL_BYTES_MAX] {
        let mut field = [0; crate::limits::DISK_SERIAL_BYTES_MAX];
        field[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        field
    }

    /// Waits for everything under way but the request in `slot`, which has not begun.
    pub(super) fn finish_others(&mut self, slot: u16, io: &mut Io<'_>) -> Result<(), ChainError> {
        let waiting = self.under_way[usize::from(slot)].take();
        let outcome = self.finish_all(Some(io));
        self.under_way[usize::from(slot)] = waiting;
        outcome
    }

    /// Waits for everything under way; with a driver that is still there, it gets its answers.
    fn finish_all(&mut self, mut io: Option<&mut Io<'_>>) -> Result<(), ChainError> {
        let mut outcome = Ok(());
        while let Some(finished) = self.engine.wait() {
            let answered = self.answer(finished, io.as_deref_mut());
            outcome = outcome.and(answered);
        }
        match io {
            Some(io) => outcome.and(self.signal(io)),
            None => outcome,
        }
    }
}

impl DeviceType for Block {
    type Saved = BlockSaved;
    const SECTION: SectionId = SectionId::Block;

    /// `struct virtio_blk_config`.
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        let mut image = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.geometry.bytes / SECTOR_BYTES).to_le_bytes());
        put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
        put(20, &self.geometry.block_bytes.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        put(36, &DISK_CLEAR_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &(self.geometry.block_bytes / 512).to_le_bytes());
        put(48, &DISK_CLEAR_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        read_image(&image, offset, into);
    }

    fn serve(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        self.work(index, io)
    }

    fn own_thread(&self) -> Option<ThreadKind> {
        Some(ThreadKind::Disk)
    }

    fn look(&mut self, io: &mut Io<'_>) -> Result<Found, ChainError> {
        self.glance(io)
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.done.as_raw_fd(), self.limiter.as_raw_fd()]
    }

    fn event(&mut self, _: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        // Requests that finished, or the end of a wait: both are looked for.
        self.reap(io)?;
        self.work_waiting(io)
    }

    fn reset(&mut self, _: &mut Io<'_>) {
        // Nobody is left to be answered.
        let _ = self.finish_all(None);
        self.waiting.fill(false);
    }

    fn settle(&mut self, io: &mut Io<'_>) -> Result<(), ChainError> {
        self.finish_all(Some(io))
    }

    fn save(&self, out: &mut Payload<'_>) {
        self.save_own(out);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<BlockSaved, StateError> {
        BlockSaved::decode(fields)
    }

    fn restore(&mut self, saved: &BlockSaved) {
        self.restore_own(saved);
    }
}

fn blueprint(spec: &DiskSpec) -> Blueprint {
    let always = [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ];
    let by_mode: &[u32] =
        if spec.readonly { &[VIRTIO_BLK_F_RO] } else { &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] };
    Blueprint {
        device_type: DEVICE_TYPE,
        class: CLASS_STORAGE,
        features: always.iter().chain(by_mode).fold(0, |all, bit| all | 1 << bit),
        queues: spec.queues,
    }
}
