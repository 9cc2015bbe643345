//! Snapshots of whole machines in files: saved while paused, restored at once or as the guest touches its memory.
//!
//! A snapshot holds RAM and state, not disks. What it says of them is enough to refuse a restore onto a disk that has
//! changed since: a guest whose memory and disk are of different times destroys its file systems.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use endophyte_snapshot::lazy::{
    LazyError, LazyMemory, LazyOptions, LazyProgress, Region, StartError, Userfault,
};
use endophyte_snapshot::{FileMemory, Progress, SaveError, Snapshot, SnapshotError, SnapshotWriter};
use serde::{Deserialize, Serialize};

use super::events::MachineEvent;
use super::platform::{Platform, lock};
use super::{Machine, MachineError, MachineFingerprint, RestoreOptions};
pub use crate::devices::block::DiskThen;
use crate::memory::PAGE_BYTES;
use crate::threads::{self, ThreadKind};

/// Why a snapshot cannot be written or restored.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The machine cannot be saved or take the state.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The file cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The file cannot be read, or is none.
    #[error(transparent)]
    Read(#[from] SnapshotError),
    /// Lazy restoring cannot begin.
    #[error("cannot restore memory lazily: {0}; try again without laziness")]
    Lazy(#[from] StartError),
    /// Its description is none of ours.
    #[error("snapshot {}: its description cannot be understood ({reason}); it was made by another release", path.display())]
    Description {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is of another machine.
    #[error("snapshot {} is of another machine, a guest of one cannot go on in the other: {differences}", path.display())]
    OtherMachine {
        /// Its path.
        path: PathBuf,
        /// What differs.
        differences: String,
    },
    /// A disk is not as it was.
    #[error("disk {} has changed since the snapshot {} was taken; restoring would destroy its file systems: put the disk of that time in place", disk.display(), path.display())]
    DiskChanged {
        /// The disk.
        disk: PathBuf,
        /// The snapshot.
        path: PathBuf,
    },
    /// Memory is not all there yet.
    #[error("the VM's own memory is still being restored; try again when that is done")]
    Restoring,
}

/// What a snapshot says of the machine it was taken of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The machine.
    pub machine: MachineFingerprint,
    /// When it stood still, nanoseconds since 1970.
    pub saved_wall_ns: u64,
    /// Its disks, in order.
    pub disks: Vec<DiskThen>,
}

/// How memory comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// All of it is there.
    Whole,
    /// It comes as it is touched, and behind the guest's back.
    Lazily,
}

impl Machine {
    /// Writes the paused machine to the file `path`, which is there whole or not at all.
    ///
    /// # Errors
    /// [`FileError`]; an older file of that name is as it was.
    pub fn save_to_file(&self, path: &Path, progress: Progress<'_>) -> Result<(), FileError> {
        if self.ram.is_filling() {
            return Err(FileError::Restoring);
        }
        let mut state = Vec::new();
        self.save_state(&mut state)?;
        // What a format keeps in memory is written now, not when the image is closed: a disk that is written to afterwards
        // does not belong to the snapshot any more.
        self.flush_disks()?;
        let info =
            SnapshotInfo { machine: self.fingerprint(), saved_wall_ns: wall_ns(), disks: self.disks_now()? };
        let description = serde_json::to_vec(&info).expect("plain data can be written as JSON");
        let mut writer = SnapshotWriter::create(path)?;
        writer.metadata(&description)?;
        writer.state(&state)?;
        writer.pages(&FileMemory::new(self.ram.memfd(), self.ram.page_count()), progress)?;
        Ok(writer.commit()?)
    }

    /// Gives the paused machine, which has not run, what a snapshot holds. With `lazily`, memory comes as it is touched.
    ///
    /// # Errors
    /// [`FileError`]; the machine must then be dropped.
    pub fn restore_from_file(
        &self,
        snapshot: Snapshot,
        lazily: Option<Userfault>,
        progress: Progress<'_>,
    ) -> Result<Restored, FileError> {
        let info = SnapshotInfo::of(&snapshot)?;
        self.check_like(&info, snapshot.path())?;
        let elapsed = Duration::from_nanos(wall_ns().saturating_sub(info.saved_wall_ns));
        let restored = match lazily {
            None => {
                let memory = FileMemory::new(self.ram.memfd(), self.ram.page_count());
                snapshot.load_all(&memory, progress)?;
                self.restore_state(snapshot.state(), RestoreOptions { elapsed })?;
                Restored::Whole
            }
            Some(userfault) => {
                let state = snapshot.state().to_vec();
                let lazy = self.start_lazily(snapshot, userfault)?;
                self.restore_state(&state, RestoreOptions { elapsed })?;
                *lock(&self.lazy) = Some(lazy);
                Restored::Lazily
            }
        };
        Ok(restored)
    }

    /// Begins to fetch the memory nobody has touched yet; to be called once the machine runs.
    ///
    /// # Errors
    /// [`FileError::Lazy`]; pages then come only as they are touched.
    pub fn fetch_ahead(&self) -> Result<(), FileError> {
        match &*lock(&self.lazy) {
            Some(lazy) => Ok(lazy.prefetch(None)?),
            None => Ok(()),
        }
    }

    /// How far a lazy restore is, if there is one.
    pub fn restore_progress(&self) -> Option<LazyProgress> {
        lock(&self.lazy).as_ref().map(LazyMemory::progress)
    }

    /// Memory that is about to get other contents needs no restoring. The machine is paused.
    pub(super) fn forget_restore(&self) {
        if let Some(lazy) = lock(&self.lazy).take() {
            lazy.release();
            self.ram.set_filling(false);
        }
    }

    fn start_lazily(&self, snapshot: Snapshot, userfault: Userfault) -> Result<LazyMemory, FileError> {
        self.fill_lazily(|regions, options| {
            LazyMemory::start(Arc::new(snapshot), regions, userfault, options)
        })
    }

    /// Has `start` fill RAM as it is touched.
    pub(super) fn fill_lazily(
        &self,
        start: impl FnOnce(Vec<Region>, LazyOptions) -> Result<LazyMemory, StartError>,
    ) -> Result<LazyMemory, FileError> {
        let region = |slot: crate::memory::Slot<'_>| {
            let pages = slot.bytes / PAGE_BYTES as u64;
            let host = usize::try_from(slot.host).expect("an address of this process");
            let owner = Arc::clone(&self.ram);
            // SAFETY: a slot is one whole shared, writable mapping of RAM's memfd, which `owner` keeps; no reference
            // to its bytes is ever made, see `GuestRam`.
            unsafe { Region::new(slot.first_page, pages, host, owner) }
        };
        let regions = self.ram.slots().map(region).collect();
        self.ram.set_filling(true);
        let (ram, platform) = (Arc::clone(&self.ram), Arc::downgrade(&self.platform));
        let options = LazyOptions {
            fault_threads: 1,
            on_thread: || threads::started(ThreadKind::Faults),
            on_error: Box::new(move |error| lose(&platform, &error)),
            on_done: Box::new(move || ram.set_filling(false)),
        };
        let started = start(regions, options);
        if started.is_err() {
            self.ram.set_filling(false);
        }
        Ok(started?)
    }

    fn check_like(&self, info: &SnapshotInfo, path: &Path) -> Result<(), FileError> {
        let differences = self.fingerprint().diff(&info.machine);
        if !differences.is_empty() {
            let differences = differences.join("; ");
            return Err(FileError::OtherMachine { path: path.to_owned(), differences });
        }
        let devices = self.platform.fitted().clone();
        let found = devices.disks().map(|(_, disk)| disk.found());
        let changed = found.zip(&info.disks).position(|(found, then)| found != Some(*then));
        match changed.and_then(|number| devices.disk_specs().into_iter().nth(number)) {
            Some(disk) => Err(FileError::DiskChanged { disk: disk.path, path: path.to_owned() }),
            None => Ok(()),
        }
    }

    fn flush_disks(&self) -> Result<(), MachineError> {
        self.platform.disks().iter().try_for_each(|disk| Ok(disk.flush()?))
    }

    fn disks_now(&self) -> Result<Vec<DiskThen>, MachineError> {
        let now = |disk: &crate::spec::DiskSpec| fs::metadata(&disk.path).map(|found| DiskThen::of(&found));
        let disks: io::Result<_> = self.platform.fitted().disk_specs().iter().map(now).collect();
        disks.map_err(|source| MachineError::Host { action: "look at a disk", source })
    }
}

fn lose(platform: &Weak<Platform>, error: &LazyError) {
    if let Some(platform) = platform.upgrade() {
        platform.end(MachineEvent::MemoryLost { reason: error.to_string() });
    }
}

impl SnapshotInfo {
    /// What a snapshot says of itself.
    ///
    /// # Errors
    /// [`FileError::Description`].
    pub fn of(snapshot: &Snapshot) -> Result<SnapshotInfo, FileError> {
        serde_json::from_slice(snapshot.metadata())
            .map_err(|e| FileError::Description { path: snapshot.path().to_owned(), reason: e.to_string() })
    }
}

fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
