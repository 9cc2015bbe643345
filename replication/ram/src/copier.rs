//! Reads what a replica lacks of the disks while the guest runs.
//!
//! A copy belongs to the epoch that was open from before it was read until after: only then do the epoch's changes make up for
//! all that the guest wrote meanwhile. One that meets a cut is read again.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use mycelium_ram_core::PageIndex;
use mycelium_ram_core::disk::{Change, DiskChange, ExtentMap};

use crate::ports::{DiskReader, PortError};

/// Extents copied in one epoch, at most: at the longest epochs of a busy guest, half a gigabyte per second.
pub(crate) const COPIES_PER_EPOCH: usize = 256;

/// A copy of an extent.
#[derive(Clone, Debug)]
pub(crate) struct Copied {
    pub(crate) extent: PageIndex,
    pub(crate) change: DiskChange,
}

#[derive(Debug, Default)]
struct Desk {
    wanted: VecDeque<PageIndex>,
    done: Vec<Copied>,
    /// Counts epochs, as far as copying goes.
    round: u64,
    failed: Option<PortError>,
    end: bool,
}

/// The thread that reads.
#[derive(Debug)]
pub(crate) struct Copier {
    reader: Arc<dyn DiskReader>,
    map: ExtentMap,
    desk: Arc<(Mutex<Desk>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    pub(crate) fn start(reader: Arc<dyn DiskReader>, map: ExtentMap) -> std::io::Result<Self> {
        let desk = Arc::<(Mutex<Desk>, Condvar)>::default();
        let (theirs, from, extents) = (desk.clone(), reader.clone(), map.clone());
        let work = move || {
            crate::priority::work();
            work(&theirs, &*from, &extents);
        };
        let thread = std::thread::Builder::new().name("copier".into()).spawn(work)?;
        Ok(Self { reader, map, desk, thread: Some(thread) })
    }

    /// An epoch has begun in which these are to be copied, as far as there is time.
    pub(crate) fn want(&self, extents: impl Iterator<Item = PageIndex>) {
        let mut desk = lock(&self.desk.0);
        desk.wanted = extents.collect();
        self.desk.1.notify_all();
    }

    /// Copies these now, to the end, in the epoch that is open.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub(crate) fn copy_now(&self, extents: impl Iterator<Item = PageIndex>) -> Result<(), PortError> {
        for extent in extents {
            let copied = copy(&*self.reader, &self.map, extent)?;
            lock(&self.desk.0).done.push(copied);
        }
        Ok(())
    }

    /// How many copies have been made in the open epoch.
    #[cfg(test)]
    pub(crate) fn copied(&self) -> usize {
        lock(&self.desk.0).done.len()
    }

    /// The epoch ends: what was copied in it, and why there is not more if a disk cannot be read.
    pub(crate) fn take(&self) -> (Vec<Copied>, Option<PortError>) {
        let mut desk = lock(&self.desk.0);
        desk.round += 1;
        desk.wanted.clear();
        (std::mem::take(&mut desk.done), desk.failed.take())
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        lock(&self.desk.0).end = true;
        self.desk.1.notify_all();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work((desk, changed): &(Mutex<Desk>, Condvar), reader: &dyn DiskReader, map: &ExtentMap) {
    loop {
        let idle = |desk: &mut Desk| desk.wanted.is_empty() && !desk.end;
        let mut waited = changed.wait_while(lock(desk), idle).unwrap_or_else(PoisonError::into_inner);
        let (round, next) = (waited.round, waited.wanted.pop_front());
        let Some(extent) = next.filter(|_| !waited.end) else { return };
        drop(waited);
        let copied = copy(reader, map, extent);
        let mut desk = lock(desk);
        match copied {
            Ok(copied) if desk.round == round => desk.done.push(copied),
            Ok(_) => {}
            Err(error) => {
                desk.failed = Some(error);
                desk.wanted.clear();
            }
        }
    }
}

fn copy(reader: &dyn DiskReader, map: &ExtentMap, extent: PageIndex) -> Result<Copied, PortError> {
    let (disk, Range { start: offset, end }) = map.place(extent);
    let mut data = vec![0; usize::try_from(end - offset).expect("an extent is small")];
    reader.read(disk, offset, &mut data)?;
    let change = if data.iter().all(|byte| *byte == 0) {
        Change::Zero { offset, bytes: end - offset }
    } else {
        Change::Copy { offset, data: Bytes::from(data) }
    };
    Ok(Copied { extent, change: DiskChange { disk, change } })
}
