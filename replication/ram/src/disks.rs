//! The disks as the epoch thread sees them: what each replica lacks, and what each epoch brings it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mycelium_ram_core::disk::{DiskChange, EXTENT_BYTES, ExtentLedger, ExtentMap, in_order};
use mycelium_ram_core::sabotage::{Sabotage, sabotaged};
use mycelium_ram_core::{EpochId, Member, PageSet};

use crate::copier::{COPIES_PER_EPOCH, Copied, Copier};
use crate::disk_log::DiskLog;
use crate::ports::{ActiveMachine, PortError};

/// Changes that end an epoch which was to be long, bytes.
const PENDING_BYTES: usize = 4 << 20;

/// An epoch's part in the disks.
#[derive(Debug, Default)]
pub(crate) struct DiskEpoch {
    copied: Vec<Copied>,
    /// Of each replica that is sent the epoch: which copies it is sent.
    lacked: BTreeMap<Member, PageSet>,
    changes: Vec<DiskChange>,
}

impl DiskEpoch {
    /// Whether the guest left the disks alone.
    pub(crate) fn is_quiet(&self) -> bool {
        self.changes.is_empty()
    }

    /// How much of them it changed.
    pub(crate) fn changed_bytes(&self) -> u64 {
        self.changes.iter().map(|change| change.change.range()).map(|range| range.end - range.start).sum()
    }

    /// What is sent to a replica, in order.
    pub(crate) fn for_replica(&self, member: Member) -> Vec<DiskChange> {
        let lacked = self.lacked.get(&member);
        let lacks = |copied: &&Copied| lacked.is_some_and(|lacked| lacked.contains(copied.extent));
        in_order(self.copied.iter().filter(lacks).map(|copied| &copied.change), &self.changes)
    }
}

/// All replicated disks of the VM.
#[derive(Debug)]
pub(crate) struct Disks {
    log: Arc<DiskLog>,
    map: ExtentMap,
    /// None if there are no disks.
    copier: Option<Copier>,
    replicas: BTreeMap<Member, ExtentLedger>,
    /// A disk waits for room in the log.
    refused: bool,
    /// A disk cannot be read: there is no more copying before the next replica.
    failed: Option<PortError>,
    given_up: bool,
}

impl Disks {
    pub(crate) fn new(machine: &impl ActiveMachine, log: Arc<DiskLog>) -> std::io::Result<Self> {
        let map = ExtentMap::new(&machine.disks());
        let copier =
            (map.extents() > 0).then(|| Copier::start(machine.disk_reader(), map.clone())).transpose()?;
        Ok(Self {
            log,
            map,
            copier,
            replicas: BTreeMap::new(),
            refused: false,
            failed: None,
            given_up: false,
        })
    }

    /// A replica that has nothing.
    pub(crate) fn begin(&mut self, member: Member) {
        if self.copier.is_some() {
            self.log.start();
        }
        self.given_up = false;
        self.replicas.insert(member, ExtentLedger::owing_all(self.map.extents()));
    }

    /// A replica that kept epochs up to `kept`.
    pub(crate) fn go_on(&mut self, member: Member, kept: EpochId) {
        if let Some(ledger) = self.replicas.get_mut(&member) {
            ledger.acked(kept);
            ledger.abort_after(kept);
        }
    }

    pub(crate) fn acked(&mut self, member: Member, epoch: EpochId) {
        if let Some(ledger) = self.replicas.get_mut(&member) {
            ledger.acked(epoch);
        }
    }

    pub(crate) fn forget(&mut self, member: Member, machine: &impl ActiveMachine) {
        self.replicas.remove(&member);
        if self.replicas.is_empty() {
            self.refused |= self.log.stop().refused;
            // What the guest writes from now on is in no epoch: a copy made before does not come right any more.
            if let Some(copier) = self.copier.as_ref().filter(|_| !sabotaged(Sabotage::CopiesOutliveTheLog)) {
                let _ = copier.take();
            }
            // There may never be a cut again.
            self.make_room_known(machine);
        }
    }

    fn make_room_known(&mut self, machine: &impl ActiveMachine) {
        if std::mem::take(&mut self.refused) {
            machine.kick_disks();
        }
    }

    /// Whether the open epoch has so many changes that it should end.
    pub(crate) fn are_pending(&self) -> bool {
        self.log.bytes() > PENDING_BYTES
    }

    /// Copies what cannot wait for a later epoch. The guest runs.
    pub(crate) fn copy_at_once(&mut self) -> Result<(), PortError> {
        let Some(copier) = &self.copier else { return Ok(()) };
        let mut needed = PageSet::empty(self.map.extents());
        self.replicas.values().filter_map(ExtentLedger::owed_at_once).for_each(|owed| needed.union(owed));
        copier.copy_now(needed.iter())
    }

    /// The epoch ends, for these replicas; the others will be sent it as part of a later one. The guest stands still.
    pub(crate) fn seal(&mut self, epoch: EpochId, sent_to: &[Member]) -> DiskEpoch {
        let Some(copier) = &self.copier else {
            let nothing = PageSet::empty(0);
            for (_, ledger) in self.replicas.iter_mut().filter(|(member, _)| sent_to.contains(member)) {
                ledger.send_in(epoch, &nothing, &nothing);
            }
            return DiskEpoch::default();
        };
        let (copied, failed) = copier.take();
        self.given_up |= failed.is_some();
        self.failed = failed;
        let taken = self.log.take();
        self.refused |= taken.refused;
        let mut written = PageSet::empty(self.map.extents());
        taken.changes.iter().for_each(|change| self.map.touch(change, &mut written));
        let mut lacked = BTreeMap::new();
        for (member, ledger) in &mut self.replicas {
            if !sent_to.contains(member) {
                ledger.owe(&written);
                continue;
            }
            let mut copies = PageSet::empty(self.map.extents());
            let owed = ledger.owed();
            copied.iter().filter(|c| owed.contains(c.extent)).for_each(|c| copies.insert(c.extent));
            ledger.send_in(epoch, &copies, &written);
            lacked.insert(*member, copies);
        }
        DiskEpoch { copied, lacked, changes: taken.changes }
    }

    /// The next epoch is open: begins to copy what is lacking. Whether there is anything.
    pub(crate) fn copy_next(&mut self, machine: &impl ActiveMachine) -> bool {
        self.make_room_known(machine);
        let Some(copier) = self.copier.as_ref().filter(|_| !self.given_up) else { return false };
        let mut owed = PageSet::empty(self.map.extents());
        self.replicas.values().for_each(|ledger| owed.union(ledger.owed()));
        if owed.is_empty() {
            return false;
        }
        copier.want(owed.iter().take(COPIES_PER_EPOCH));
        true
    }

    /// Why there is no more copying, once.
    pub(crate) fn trouble(&mut self) -> Option<PortError> {
        self.failed.take()
    }

    /// Replicas that have everything with this very epoch.
    pub(crate) fn filled_by(&self, epoch: EpochId) -> Vec<Member> {
        self.replicas
            .iter()
            .filter(|(_, ledger)| ledger.filled() == Some(epoch))
            .map(|(member, _)| *member)
            .collect()
    }

    /// Bytes that are still to be copied to the replica that lacks most, and of how many.
    pub(crate) fn lacking(&self) -> (u64, u64) {
        let extents = self.replicas.values().map(|ledger| ledger.owed().len()).max();
        let bytes = |extents: u64| extents * EXTENT_BYTES;
        (bytes(extents.unwrap_or(0)), bytes(self.map.extents()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use bytes::Bytes;
    use mycelium_ram_core::disk::Change;
    use mycelium_ram_core::page_codec::Page;
    use mycelium_ram_core::{Incarnation, NodeId, PageIndex};

    use super::*;
    use crate::ports::DiskReader;

    const EXTENTS: usize = 3;

    #[derive(Debug, Default)]
    struct Shelf {
        /// The byte each extent is filled with.
        content: Mutex<[u8; EXTENTS]>,
        kicked: AtomicU32,
    }

    /// A machine of one disk and nothing else.
    #[derive(Clone, Debug, Default)]
    struct OneDisk(Arc<Shelf>);

    impl DiskReader for OneDisk {
        fn read(&self, _: u8, offset: u64, into: &mut [u8]) -> Result<(), PortError> {
            let extent = usize::try_from(offset / EXTENT_BYTES).unwrap();
            into.fill(self.0.content.lock().unwrap()[extent]);
            Ok(())
        }
    }

    impl ActiveMachine for OneDisk {
        fn pages(&self) -> u64 {
            0
        }
        fn start_tracking(&mut self) -> Result<(), PortError> {
            Ok(())
        }
        fn stop_tracking(&mut self) -> Result<(), PortError> {
            Ok(())
        }
        fn disks(&self) -> Vec<u64> {
            vec![EXTENTS as u64 * EXTENT_BYTES]
        }
        fn disk_reader(&self) -> Arc<dyn DiskReader> {
            Arc::new(self.clone())
        }
        fn kick_disks(&self) {
            self.0.kicked.fetch_add(1, Ordering::Relaxed);
        }
        fn pause(&mut self) -> Result<(), PortError> {
            Ok(())
        }
        fn busy(&self) -> Duration {
            Duration::ZERO
        }
        fn resume(&mut self) {}
        fn forward_input(&mut self, _: bool) {}
        fn harvest(&mut self, _: &mut PageSet, _: &PageSet) -> Result<(), PortError> {
            Ok(())
        }
        fn dirty_pages(&mut self) -> Result<u64, PortError> {
            Ok(0)
        }
        fn read_page(&self, _: PageIndex, _: &mut Page) {}
        fn reset(&mut self) -> Result<(), PortError> {
            Ok(())
        }
        fn save_state(&mut self, _: &mut Vec<u8>) -> Result<(), PortError> {
            Ok(())
        }
    }

    /// The guest's work on the machine's disk, and a replica that gets what leaves.
    struct Desk {
        machine: OneDisk,
        log: Arc<DiskLog>,
        disks: Disks,
        replica: [u8; EXTENTS],
        epoch: EpochId,
    }

    const REPLICA: Member = Member { node: NodeId([1; 32]), incarnation: Incarnation(1) };

    impl Desk {
        fn new() -> Self {
            let (machine, log) = (OneDisk::default(), Arc::new(DiskLog::default()));
            let disks = Disks::new(&machine, log.clone()).unwrap();
            Self { machine, log, disks, replica: [0xff; EXTENTS], epoch: EpochId(0) }
        }

        /// The guest fills an extent.
        fn write(&self, extent: usize, byte: u8) {
            if self.log.is_on() {
                let data = Bytes::from(vec![byte; usize::try_from(EXTENT_BYTES).unwrap()]);
                let change = Change::Write { offset: extent as u64 * EXTENT_BYTES, data };
                self.log.note(DiskChange { disk: 0, change });
            }
            self.machine.0.content.lock().unwrap()[extent] = byte;
        }

        /// Ends an epoch; what is sent arrives or not.
        fn cut(&mut self, arrives: bool) {
            self.epoch = self.epoch.next();
            let sent = self.disks.seal(self.epoch, &[REPLICA]).for_replica(REPLICA);
            if arrives {
                for DiskChange { change, .. } in sent {
                    let extent = usize::try_from(change.range().start / EXTENT_BYTES).unwrap();
                    self.replica[extent] = match change {
                        Change::Write { data, .. } | Change::Copy { data, .. } => data[0],
                        Change::Zero { .. } | Change::Flush => 0,
                    };
                }
                self.disks.acked(REPLICA, self.epoch);
            }
            self.disks.copy_next(&self.machine);
        }

        fn is_like_the_machine(&self) -> bool {
            self.replica == *self.machine.0.content.lock().unwrap()
        }

        /// Cuts until the copier has had its time.
        fn fill(&mut self) -> u32 {
            let mut rounds = 0;
            while self.disks.lacking().0 > 0 {
                self.cut(true);
                rounds += 1;
                std::thread::yield_now();
            }
            rounds
        }
    }

    #[test]
    fn a_replica_is_filled_while_the_guest_writes() {
        let mut desk = Desk::new();
        desk.write(0, 7);
        desk.disks.begin(REPLICA);
        let rounds = desk.fill();
        assert!(rounds >= 2, "copies belong to epochs that began after the replica came");
        assert_eq!(desk.disks.filled_by(desk.epoch), [REPLICA]);
        assert!(desk.is_like_the_machine());
        desk.write(2, 9);
        desk.cut(true);
        assert!(desk.is_like_the_machine());
    }

    #[test]
    fn what_a_broken_connection_cost_comes_with_the_next_epoch() {
        let mut desk = Desk::new();
        desk.disks.begin(REPLICA);
        desk.fill();
        let kept = desk.epoch;
        desk.write(1, 5);
        desk.cut(false);
        desk.disks.go_on(REPLICA, kept);
        desk.disks.copy_at_once().unwrap();
        desk.write(0, 6);
        desk.cut(true);
        assert!(desk.is_like_the_machine());
        assert_eq!(desk.disks.lacking().0, 0);
    }

    #[test]
    fn a_copy_for_a_replica_that_went_is_not_sent_to_the_next_one() {
        let mut desk = Desk::new();
        desk.disks.begin(REPLICA);
        desk.cut(true);
        while desk.disks.copier.as_ref().unwrap().copied() < EXTENTS {
            std::thread::yield_now();
        }
        desk.disks.forget(REPLICA, &desk.machine);
        (0..EXTENTS).for_each(|extent| desk.write(extent, 9));
        desk.disks.begin(REPLICA);
        desk.fill();
        assert!(desk.is_like_the_machine());
    }

    #[test]
    fn a_disk_that_waits_for_room_goes_on_when_the_last_replica_is_gone() {
        let mut desk = Desk::new();
        desk.disks.begin(REPLICA);
        while desk.log.has_room() {
            desk.write(0, 1);
        }
        assert!(desk.disks.are_pending());
        assert_eq!(desk.machine.0.kicked.load(Ordering::Relaxed), 0);
        desk.disks.forget(REPLICA, &desk.machine);
        assert_eq!(desk.machine.0.kicked.load(Ordering::Relaxed), 1);
        assert!(!desk.log.is_on());
    }
}
