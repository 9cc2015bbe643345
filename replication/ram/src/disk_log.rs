//! What the guest does to its disks, from when it asks until the epoch is cut.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mycelium_ram_core::disk::DiskChange;

/// Bytes of changes that may wait for a cut before disks must.
const LOG_BYTES: usize = 32 << 20;

/// The changes of the open epoch, filled by the disks, emptied by the epoch thread.
#[derive(Debug, Default)]
pub struct DiskLog {
    /// Whether anybody wants to know.
    on: AtomicBool,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    changes: Vec<DiskChange>,
    bytes: usize,
    /// A disk was told to wait.
    refused: bool,
}

/// An epoch's changes, in the order in which the guest asked for them.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) changes: Vec<DiskChange>,
    /// A disk waits for room: it is to be told that there is some.
    pub(crate) refused: bool,
}

impl DiskLog {
    /// Whether changes are to be noted. A disk asks before it begins a request.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Whether there is room for another change. A disk that gets `false` waits until it is told.
    pub fn has_room(&self) -> bool {
        let mut open = self.lock();
        let room = open.bytes < LOG_BYTES;
        open.refused |= !room;
        room
    }

    /// Bytes that wait for a cut.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Notes a change that is about to be made. The guest must not be told that it is done in an earlier epoch.
    pub fn note(&self, change: DiskChange) {
        let mut open = self.lock();
        open.bytes += change.change.weight();
        open.changes.push(change);
    }

    /// Begins to note. What is under way now is not in the log, and is over at the next cut.
    pub(crate) fn start(&self) {
        self.on.store(true, Ordering::Release);
    }

    /// Nobody wants to know any more.
    pub(crate) fn stop(&self) -> Taken {
        self.on.store(false, Ordering::Release);
        self.take()
    }

    /// Takes out what there is. The disks stand still, or it is `stop`'s rest.
    pub(crate) fn take(&self) -> Taken {
        let Open { changes, refused, .. } = std::mem::take(&mut *self.lock());
        Taken { changes, refused }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mycelium_ram_core::disk::Change;

    use super::*;

    #[test]
    fn a_full_log_makes_disks_wait_and_says_when_they_need_not() {
        let log = DiskLog::default();
        assert!(!log.is_on());
        log.start();
        let change = || DiskChange {
            disk: 0,
            change: Change::Write { offset: 0, data: Bytes::from(vec![0; 1 << 20]) },
        };
        let noted =
            std::iter::repeat_with(|| log.has_room()).take_while(|room| *room).map(|_| log.note(change()));
        assert_eq!(noted.count(), LOG_BYTES >> 20);
        let taken = log.take();
        assert!(taken.refused && taken.changes.len() == LOG_BYTES >> 20);
        assert!(log.has_room() && !log.take().refused);
    }
}
