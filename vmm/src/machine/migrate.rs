//! A machine on the move: its disks change hands, and memory that is not here yet comes as it is touched.
//!
//! ```text
//!   source: running ── pause ── save_state ── release_disks ── (the destination runs)
//!                        └────────────────────── take_disks ── resume   (it does not)
//!   destination: build_incoming ── restore_state ── take_disks ── resume
//!                        └── receive_lazily ──┘         (post-copy: supply, until is_filling ends)
//! ```

use std::io;
use std::ops::Range;
use std::sync::Arc;

use endophyte_snapshot::PageFetch;
use endophyte_snapshot::lazy::{LazyError, LazyMemory, Userfault};
use mycelium_ram_core::disk::{Change, DiskChange};
use mycelium_ram_core::{PageIndex, PageSet};

use super::fitted::Fitted;
use super::platform::lock;
use super::{FileError, Machine, MachineError};
use crate::devices::block::Disk;
use crate::memory::{PAGE_BYTES, Page};

/// What two nodes compare of a disk before it changes hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSize {
    /// What the guest knows it by.
    pub serial: String,
    /// Its size, bytes.
    pub bytes: u64,
}

impl Machine {
    /// The disks, in order.
    pub fn disk_sizes(&self) -> Vec<DiskSize> {
        let devices = self.platform.fitted().clone();
        let size = |(fitted, disk): (&Fitted, &Arc<Disk>)| DiskSize {
            serial: fitted.name().unwrap_or_default().to_owned(),
            bytes: disk.bytes(),
        };
        devices.disks().map(size).collect()
    }

    /// Bytes of each disk whose changes are followed, in order; 0 of one that is not.
    pub fn followed_disks(&self) -> Vec<u64> {
        let bytes = |disk: &Arc<Disk>| if disk.is_followed() { disk.bytes() } else { 0 };
        self.platform.disks().iter().map(bytes).collect()
    }

    /// Reads a disk, by its place, past the guest, which may run.
    ///
    /// # Errors
    /// The host's; `NotFound` if there is no such disk.
    pub fn read_disk(&self, disk: u8, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk_at(disk)?.read_beside(offset, into)
    }

    /// Makes a change to a disk of the paused machine that its guest has made elsewhere.
    ///
    /// # Errors
    /// As [`Machine::read_disk`]. The disk may be changed in part then.
    pub fn change_disk(&self, change: &DiskChange) -> io::Result<()> {
        self.disk_at(change.disk)?.change(&change.change)
    }

    /// From here on what is promised of the followed disks is journaled beside their images, before it is made. The machine
    /// has not run.
    ///
    /// # Errors
    /// [`MachineError::Disk`].
    pub fn begin_journals(&self) -> Result<(), MachineError> {
        let mut followed = self.platform.disks().into_iter().filter(|disk| disk.is_followed());
        followed.try_for_each(|disk| Ok(disk.begin_journal()?))
    }

    /// Promises changes of an epoch; lasting, where the guest flushed. Copies of what a disk held before are not promised.
    ///
    /// # Errors
    /// The host's.
    pub fn promise_changes(&self, epoch: u64, changes: &[DiskChange]) -> io::Result<()> {
        for (number, disk) in (0u8..).zip(self.platform.disks()) {
            let own = changes.iter().filter(|c| c.disk == number && !matches!(c.change, Change::Copy { .. }));
            disk.promise(epoch, own.map(|change| &change.change))?;
        }
        Ok(())
    }

    /// The promised changes of all epochs up to this one have been made.
    pub fn made_through(&self, epoch: u64) {
        self.platform.disks().iter().for_each(|disk| disk.made_through(epoch));
    }

    /// The guest goes on from the end of this epoch: what was promised of later ones is not to be.
    ///
    /// # Errors
    /// The host's; the guest must not go on then.
    pub fn forget_promises_after(&self, epoch: u64) -> io::Result<()> {
        self.platform.disks().iter().try_for_each(|disk| disk.forget_after(epoch))
    }

    /// Ends the journals: what was promised is made to last by itself. The guest may run.
    ///
    /// # Errors
    /// The host's; it can be tried again.
    pub fn retire_journals(&self) -> io::Result<()> {
        self.platform.disks().iter().try_for_each(|disk| disk.retire_journal())
    }

    /// Whoever follows the disks, once full, has room again.
    pub fn kick_disks(&self) {
        self.platform.disks().iter().for_each(|disk| disk.kick());
    }

    fn disk_at(&self, disk: u8) -> io::Result<Arc<Disk>> {
        let disks = self.platform.disks();
        disks.get(usize::from(disk)).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Makes what the guest has written to its disks so far last, while it runs: releasing them takes less long then.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn sync_disks(&self) -> Result<(), MachineError> {
        let sync = |disk: &Arc<Disk>| match disk.file()? {
            Some(file) => file.sync_data(),
            None => Ok(()),
        };
        let all: io::Result<()> = self.platform.disks().iter().try_for_each(sync);
        all.map_err(|source| MachineError::Host { action: "write a disk out", source })
    }

    /// Lets go of the paused machine's disks, for another process to take: everything written lasts, nothing is locked
    /// or cached. The machine does not resume until [`Machine::take_disks`].
    ///
    /// # Errors
    /// [`MachineError::Running`], or [`MachineError::Disk`]; some may be away then: take them back.
    pub fn release_disks(&self) -> Result<(), MachineError> {
        let _parked = self.parked("let go of its disks")?;
        self.platform.disks().iter().try_for_each(|disk| Ok(disk.release()?))
    }

    /// Opens the paused machine's disks where they are away.
    ///
    /// # Errors
    /// [`MachineError::Running`], or [`MachineError::Disk`]; the call can be repeated.
    pub fn take_disks(&self) -> Result<(), MachineError> {
        let _parked = self.parked("take its disks")?;
        self.platform.disks().iter().try_for_each(|disk| Ok(disk.take()?))
    }

    pub(super) fn disks_are_away(&self) -> bool {
        self.platform.disks().iter().any(|disk| disk.is_away())
    }

    /// From here on the pages `missing` of the paused machine come from `fetch` when they are touched, or by
    /// [`Machine::supply`]; all others are here. When they cannot be had, the machine stops with
    /// [`MachineEvent::MemoryLost`](super::MachineEvent::MemoryLost).
    ///
    /// # Errors
    /// [`FileError::Lazy`]; the machine must then be dropped.
    pub fn receive_lazily(
        &self,
        fetch: Arc<dyn PageFetch>,
        missing: &PageSet,
        userfault: Userfault,
        fault_threads: usize,
    ) -> Result<(), FileError> {
        let missing: Vec<Range<u64>> = ranges(missing);
        let lazy = self.fill_lazily(|regions, options| {
            let options = endophyte_snapshot::lazy::LazyOptions { fault_threads, ..options };
            LazyMemory::start_partly(fetch, regions, &missing, userfault, options)
        })?;
        *lock(&self.lazy) = Some(lazy);
        Ok(())
    }

    /// The pages that are missing cannot be had any more: the machine stops for good.
    pub fn lose_memory(&self, reason: &str) {
        self.platform.end(super::MachineEvent::MemoryLost { reason: reason.to_owned() });
    }

    /// Gives the machine a page it was missing; one that is here already is left alone. `None` is a page of zeros.
    ///
    /// # Errors
    /// [`LazyError`].
    pub fn supply(&self, page: PageIndex, content: Option<&Page>) -> Result<(), LazyError> {
        match &*lock(&self.lazy) {
            Some(lazy) => lazy.supply(page.0, content.map(|content| &content[..])),
            None => Ok(()),
        }
    }
}

fn ranges(pages: &PageSet) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for PageIndex(page) in pages.iter() {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => ranges.push(page..page + 1),
        }
    }
    ranges
}

const _: () = assert!(PAGE_BYTES == endophyte_snapshot::limits::PAGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_next_to_each_other_are_one_range() {
        let mut pages = PageSet::empty(200);
        [0, 1, 2, 63, 64, 199].into_iter().for_each(|page| pages.insert(PageIndex(page)));
        assert_eq!(ranges(&pages), [0..3, 63..65, 199..200]);
        assert!(ranges(&PageSet::empty(9)).is_empty());
    }
}
