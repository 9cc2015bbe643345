//! The disks as the epoch thread sees them: what each replica lacks, and what each epoch brings it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mycelium_ram_core::disk::{DiskChange, EXTENT_BYTES, ExtentLedger, ExtentMap};
use mycelium_ram_core::{EpochId, Member, PageSet};

use crate::copier::{COPIES_PER_EPOCH, Copied, Copier};
use crate::disk_log::DiskLog;
use crate::ports::{ActiveMachine, PortError};

/// What a replica has of the disks.
#[derive(Debug)]
struct Holding {
    ledger: ExtentLedger,
    /// With this epoch it has everything.
    filled: Option<EpochId>,
    /// What it lost with a connection is to be in the next epoch, all of it: output may wait for this replica.
    at_once: bool,
}

/// An epoch's part in the disks.
#[derive(Debug, Default)]
pub(crate) struct DiskEpoch {
    copied: Vec<Copied>,
    /// Of each replica that is sent the epoch: which copies it is sent.
    lacked: BTreeMap<Member, PageSet>,
    changes: Vec<DiskChange>,
}

impl DiskEpoch {
    /// What is sent to a replica, in order.
    pub(crate) fn for_replica(&self, member: Member) -> Vec<DiskChange> {
        let lacked = self.lacked.get(&member);
        let lacks = |copied: &&Copied| lacked.is_some_and(|lacked| lacked.contains(copied.extent));
        let copies = self.copied.iter().filter(lacks).map(|copied| &copied.change);
        copies.chain(&self.changes).cloned().collect()
    }
}

/// All replicated disks of the VM.
#[derive(Debug)]
pub(crate) struct Disks {
    log: Arc<DiskLog>,
    map: ExtentMap,
    /// None if there are no disks.
    copier: Option<Copier>,
    replicas: BTreeMap<Member, Holding>,
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
        let ledger = ExtentLedger::owing_all(self.map.extents());
        self.replicas.insert(member, Holding { ledger, filled: None, at_once: false });
    }

    /// A replica that kept epochs up to `kept`.
    pub(crate) fn go_on(&mut self, member: Member, kept: EpochId) {
        let Some(holding) = self.replicas.get_mut(&member) else { return };
        holding.ledger.acked(kept);
        holding.ledger.abort_after(kept);
        holding.filled = holding.filled.filter(|filled| *filled <= kept);
        holding.at_once = holding.filled.is_some();
    }

    pub(crate) fn acked(&mut self, member: Member, epoch: EpochId) {
        if let Some(holding) = self.replicas.get_mut(&member) {
            holding.ledger.acked(epoch);
        }
    }

    pub(crate) fn forget(&mut self, member: Member) {
        self.replicas.remove(&member);
        if self.replicas.is_empty() {
            self.refused |= self.log.stop().refused;
        }
    }

    /// Copies what cannot wait for a later epoch. The guest runs.
    pub(crate) fn copy_at_once(&mut self) -> Result<(), PortError> {
        let Some(copier) = &self.copier else { return Ok(()) };
        let mut needed = PageSet::empty(self.map.extents());
        self.replicas.values().filter(|h| h.at_once).for_each(|h| needed.union(h.ledger.owed()));
        copier.copy_now(needed.iter())
    }

    /// The epoch ends, for these replicas; the others will be sent it as part of a later one. The guest stands still.
    pub(crate) fn seal(&mut self, epoch: EpochId, sent_to: &[Member]) -> DiskEpoch {
        let Some(copier) = &self.copier else {
            self.replicas.values_mut().for_each(|holding| holding.filled = holding.filled.or(Some(epoch)));
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
        for (member, holding) in &mut self.replicas {
            if !sent_to.contains(member) {
                holding.ledger.owe(&written);
                continue;
            }
            let mut copies = PageSet::empty(self.map.extents());
            let owed = holding.ledger.owed();
            copied.iter().filter(|c| owed.contains(c.extent)).for_each(|c| copies.insert(c.extent));
            holding.ledger.send_in(epoch, &copies, &written);
            holding.at_once = false;
            if holding.ledger.owed().is_empty() {
                holding.filled = holding.filled.or(Some(epoch));
            }
            lacked.insert(*member, copies);
        }
        DiskEpoch { copied, lacked, changes: taken.changes }
    }

    /// The next epoch is open: begins to copy what is lacking. Whether there is anything.
    pub(crate) fn copy_next(&mut self, machine: &impl ActiveMachine) -> bool {
        if std::mem::take(&mut self.refused) {
            machine.kick_disks();
        }
        let Some(copier) = self.copier.as_ref().filter(|_| !self.given_up) else { return false };
        let mut owed = PageSet::empty(self.map.extents());
        self.replicas.values().for_each(|holding| owed.union(holding.ledger.owed()));
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
        self.replicas.iter().filter(|(_, h)| h.filled == Some(epoch)).map(|(member, _)| *member).collect()
    }

    /// Bytes that are still to be copied to the replica that lacks most, and of how many.
    pub(crate) fn lacking(&self) -> (u64, u64) {
        let extents = self.replicas.values().map(|holding| holding.ledger.owed().len()).max();
        let bytes = |extents: u64| extents * EXTENT_BYTES;
        (bytes(extents.unwrap_or(0)), bytes(self.map.extents()))
    }
}
