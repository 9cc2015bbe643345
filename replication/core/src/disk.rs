//! What a guest does to its disks: changes in an epoch, their encoding, and the ledger of what a replica lacks.
//!
//! ```text
//!   copied while the epoch is open (what the disk held when it began, or later) ─┐
//!   changes of the guest, in the order in which it asked for them ───────────────┴─> disk parts of the epoch
//! ```
//! A replica that applies an epoch's copies before its changes has, at the end of the epoch, what the disk has: a copy may be
//! older than some of the changes or newer, each of which comes after it again. So a disk is copied while it is being written to.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{DecodeError, Reader};
use crate::ids::{EpochId, PageIndex};
use crate::page_codec::PART_BYTES_MAX;
use crate::pages::PageSet;
use crate::sabotage::{Sabotage, sabotaged};

/// Unit of a disk's addresses, bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Unit in which is counted what a replica lacks of a disk, bytes.
pub const EXTENT_BYTES: u64 = 64 << 10;
/// Longest run of bytes in one change; longer writes are several.
const RUN_BYTES: usize = 512 << 10;
/// Bytes before a change's data.
const HEAD_BYTES: usize = 1 + 1 + 8 + 8;

const WRITE: u8 = 1;
const COPY: u8 = 2;
const ZERO: u8 = 3;
const FLUSH: u8 = 4;

/// Something that happens to a disk. Offsets and lengths are whole sectors, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The guest wrote `data`.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// What the disk held, for a replica that lacks it.
    Copy {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// The range holds nothing, and its space may be given back.
    Zero {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// The guest was told that all changes before this one last.
    Flush,
}

impl Change {
    /// The range it changes; empty for a flush.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        match self {
            Self::Write { offset, data } | Self::Copy { offset, data } => {
                *offset..*offset + data.len() as u64
            }
            Self::Zero { offset, bytes } => *offset..*offset + bytes,
            Self::Flush => 0..0,
        }
    }

    /// What it weighs in memory and on the link, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Write { data, .. } | Self::Copy { data, .. } => HEAD_BYTES + data.len(),
            Self::Zero { .. } | Self::Flush => HEAD_BYTES,
        }
    }
}

/// A change, and the disk it happens to, by its place among the machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskChange {
    /// Which disk.
    pub disk: u8,
    /// What.
    pub change: Change,
}

/// Gathers changes into parts.
#[derive(Debug, Default)]
pub struct DiskPartWriter {
    out: BytesMut,
}

impl DiskPartWriter {
    /// Appends a change; parts that became full by it are handed to `full`.
    ///
    /// # Errors
    /// What `full` returns.
    pub fn push<E>(
        &mut self,
        change: &DiskChange,
        mut full: impl FnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let disk = change.disk;
        match &change.change {
            Change::Write { offset, data } => self.run((WRITE, disk), *offset, data, &mut full),
            Change::Copy { offset, data } => self.run((COPY, disk), *offset, data, &mut full),
            Change::Zero { offset, bytes } => {
                self.head(ZERO, disk, *offset, *bytes);
                self.hand_out_if_full(&mut full)
            }
            Change::Flush => {
                self.head(FLUSH, disk, 0, 0);
                self.hand_out_if_full(&mut full)
            }
        }
    }

    fn run<E>(
        &mut self,
        (kind, disk): (u8, u8),
        offset: u64,
        data: &[u8],
        full: &mut impl FnMut(Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        for (at, run) in (0u64..).step_by(RUN_BYTES).zip(data.chunks(RUN_BYTES)) {
            self.head(kind, disk, offset + at, run.len() as u64);
            self.out.put_slice(run);
            self.hand_out_if_full(full)?;
        }
        Ok(())
    }

    fn head(&mut self, kind: u8, disk: u8, offset: u64, bytes: u64) {
        self.out.put_slice(&[kind, disk]);
        self.out.put_u64_le(offset);
        self.out.put_u64_le(bytes);
    }

    fn hand_out_if_full<E>(&mut self, full: &mut impl FnMut(Bytes) -> Result<(), E>) -> Result<(), E> {
        // Another run of the longest kind would have to fit.
        if self.out.len() + RUN_BYTES + HEAD_BYTES > PART_BYTES_MAX {
            full(self.out.split().freeze())
        } else {
            Ok(())
        }
    }

    /// The last part, if anything is left for one.
    pub fn finish(&mut self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }
}

/// Reads the changes of a part for disks of `sizes` bytes. Data are shared with the part, not copied.
///
/// # Errors
/// [`DecodeError`] when the part is malformed, or a change is not of whole sectors inside its disk.
pub fn read_part(part: &Bytes, sizes: &[u64]) -> Result<Vec<DiskChange>, DecodeError> {
    let mut reader = Reader::new(part);
    let mut changes = Vec::new();
    while !reader.is_empty() {
        let (kind, disk) = (reader.u8("kind of change")?, reader.u8("disk")?);
        let (offset, bytes) = (reader.u64("offset on a disk")?, reader.u64("length on a disk")?);
        let size =
            *sizes.get(usize::from(disk)).ok_or(DecodeError::Value { what: "disk", got: u64::from(disk) })?;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
        if !inside || !offset.is_multiple_of(SECTOR_BYTES) || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DecodeError::Value { what: "range on a disk", got: offset });
        }
        let mut data = || {
            let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= RUN_BYTES);
            reader.take("data of a disk", bytes.unwrap_or(usize::MAX))
        };
        let change = match kind {
            WRITE => Change::Write { offset, data: data()? },
            COPY => Change::Copy { offset, data: data()? },
            ZERO => Change::Zero { offset, bytes },
            FLUSH => Change::Flush,
            other => return Err(DecodeError::Value { what: "kind of change", got: u64::from(other) }),
        };
        changes.push(DiskChange { disk, change });
    }
    Ok(changes)
}

/// The extents of several disks, numbered through.
#[derive(Clone, Debug)]
pub struct ExtentMap {
    /// Bytes of each disk, and the number of its first extent.
    disks: Vec<(u64, u64)>,
    extents: u64,
    extent_bytes: u64,
}

impl ExtentMap {
    /// Of disks of these sizes, bytes.
    #[must_use]
    pub fn new(sizes: &[u64]) -> Self {
        Self::with_extents_of(EXTENT_BYTES, sizes)
    }

    /// With extents of another size, bytes; for disks of a few of them.
    #[must_use]
    pub fn with_extents_of(extent_bytes: u64, sizes: &[u64]) -> Self {
        let mut extents = 0;
        let mut number = |bytes: &u64| {
            let first = extents;
            extents += bytes.div_ceil(extent_bytes);
            (*bytes, first)
        };
        let disks = sizes.iter().map(&mut number).collect();
        Self { disks, extents, extent_bytes }
    }

    /// How many there are.
    #[must_use]
    pub fn extents(&self) -> u64 {
        self.extents
    }

    /// Adds the extents that a change touches.
    ///
    /// # Panics
    /// When there is no such disk, or the change is not inside it: our own device made it.
    pub fn touch(&self, change: &DiskChange, into: &mut PageSet) {
        let (bytes, first) = self.disks[usize::from(change.disk)];
        let range = change.change.range();
        assert!(range.end <= bytes, "a change past the end of disk {}", change.disk);
        let touched = range.start / self.extent_bytes..range.end.div_ceil(self.extent_bytes);
        touched.for_each(|extent| into.insert(PageIndex(first + extent)));
    }

    /// Where an extent is: disk, and its range there.
    ///
    /// # Panics
    /// When there is no such extent.
    #[must_use]
    pub fn place(&self, extent: PageIndex) -> (u8, Range<u64>) {
        assert!(extent.0 < self.extents, "extent {extent} of {}", self.extents);
        let disk = self.disks.partition_point(|(_, first)| *first <= extent.0) - 1;
        let (bytes, first) = self.disks[disk];
        let start = (extent.0 - first) * self.extent_bytes;
        let disk = u8::try_from(disk).expect("a machine has few disks");
        (disk, start..bytes.min(start + self.extent_bytes))
    }
}

/// What is sent of the disks in an epoch, in order.
pub fn in_order<'a>(
    copies: impl Iterator<Item = &'a DiskChange>,
    changes: &'a [DiskChange],
) -> Vec<DiskChange> {
    let (copies, changes) = (copies.cloned(), changes.iter().cloned());
    if sabotaged(Sabotage::CopiesAfterChanges) {
        changes.chain(copies).collect()
    } else {
        copies.chain(changes).collect()
    }
}

/// What a replica lacks of the disks: extents it was never sent, or was sent in epochs that came to nothing.
///
/// It is filled with the epoch after which it lacks none. Output may wait for it from then on, so whatever it comes to lack later is
/// owed at once: the next epoch it is sent must carry all of it.
#[derive(Debug)]
pub struct ExtentLedger {
    owed: PageSet,
    in_flight: BTreeMap<EpochId, PageSet>,
    filled: Option<EpochId>,
}

impl ExtentLedger {
    /// Of a replica that has nothing.
    #[must_use]
    pub fn owing_all(extents: u64) -> Self {
        Self { owed: PageSet::full(extents), in_flight: BTreeMap::new(), filled: None }
    }

    /// What has to be copied.
    #[must_use]
    pub fn owed(&self) -> &PageSet {
        &self.owed
    }

    /// What has to be copied before the next epoch is sent.
    #[must_use]
    pub fn owed_at_once(&self) -> Option<&PageSet> {
        self.filled.map(|_| &self.owed)
    }

    /// The epoch with which it has all it lacked; none while it lacks some, or if that epoch came to nothing.
    #[must_use]
    pub fn filled(&self) -> Option<EpochId> {
        self.filled
    }

    /// These changed in an epoch that is not sent to this replica.
    pub fn owe(&mut self, extents: &PageSet) {
        self.owed.union(extents);
    }

    /// `copied` leave whole in `epoch`; `written` leave in part, by what the guest wrote to them.
    pub fn send_in(&mut self, epoch: EpochId, copied: &PageSet, written: &PageSet) {
        self.owed.subtract(copied);
        let sent = self.in_flight.entry(epoch).or_insert_with(|| PageSet::empty(copied.capacity()));
        sent.union(copied);
        sent.union(written);
        debug_assert!(self.filled.is_none() || self.owed.is_empty(), "{epoch} lacks what was owed at once");
        if self.owed.is_empty() {
            self.filled = self.filled.or(Some(epoch));
        }
    }

    /// The replica has staged every epoch up to `through`.
    pub fn acked(&mut self, through: EpochId) {
        self.in_flight = self.in_flight.split_off(&through.next());
    }

    /// Epochs after `kept` will never be staged as sent.
    pub fn abort_after(&mut self, kept: EpochId) {
        self.filled = self.filled.filter(|filled| *filled <= kept);
        for (_, extents) in self.in_flight.split_off(&kept.next()) {
            if !sabotaged(Sabotage::ExtentsNotReturned) {
                self.owed.union(&extents);
            }
        }
    }
}

/// Entry point for fuzzing: whatever can be read is inside the disks, and is written again to the same.
#[cfg(feature = "fuzzing")]
pub fn fuzz_disk_part(data: &[u8]) {
    let sizes = [1 << 20, 512, 3 << 20];
    let Ok(changes) = read_part(&Bytes::copy_from_slice(data), &sizes) else { return };
    let map = ExtentMap::new(&sizes);
    let mut touched = PageSet::empty(map.extents());
    let mut writer = DiskPartWriter::default();
    let mut again = Vec::new();
    for change in &changes {
        map.touch(change, &mut touched);
        let full = |part: Bytes| -> Result<(), DecodeError> {
            again.extend(read_part(&part, &sizes)?);
            Ok(())
        };
        writer.push(change, full).expect("what we write, we read");
    }
    if let Some(part) = writer.finish() {
        again.extend(read_part(&part, &sizes).expect("what we write, we read"));
    }
    // Empty runs are written as nothing.
    let solid = |c: &&DiskChange| !matches!(&c.change, Change::Write { data, .. } | Change::Copy { data, .. } if data.is_empty());
    assert!(changes.iter().filter(solid).eq(again.iter()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZES: [u64; 2] = [4 << 20, 3 * 512];

    fn parts(changes: &[DiskChange]) -> Vec<Bytes> {
        let (mut writer, mut parts) = (DiskPartWriter::default(), Vec::new());
        for change in changes {
            let full = |part| {
                parts.push(part);
                Ok::<(), ()>(())
            };
            writer.push(change, full).unwrap();
        }
        parts.extend(writer.finish());
        parts
    }

    fn set(extents: u64, of: &[u64]) -> PageSet {
        let mut set = PageSet::empty(extents);
        of.iter().for_each(|e| set.insert(PageIndex(*e)));
        set
    }

    #[test]
    fn long_writes_become_bounded_parts() {
        let data = Bytes::from((0..3u32 << 20).map(|n| n.to_le_bytes()[1]).collect::<Vec<u8>>());
        let parts =
            parts(&[DiskChange { disk: 0, change: Change::Write { offset: 512, data: data.clone() } }]);
        assert!(parts.len() > 1 && parts.iter().all(|part| part.len() <= PART_BYTES_MAX));
        let mut disk = vec![0; 4 << 20];
        for change in parts.iter().flat_map(|part| read_part(part, &SIZES).unwrap()) {
            let Change::Write { offset, data } = change.change else { panic!("{change:?}") };
            let at = usize::try_from(offset).unwrap();
            disk[at..at + data.len()].copy_from_slice(&data);
        }
        assert!(disk[512..512 + data.len()] == data && disk[..512] == [0; 512]);
    }

    #[test]
    fn what_is_outside_the_disks_is_refused() {
        let zero =
            |disk, offset, bytes| parts(&[DiskChange { disk, change: Change::Zero { offset, bytes } }]);
        for (disk, offset, bytes) in [
            (2, 0, 512),
            (1, 1024, 1024),
            (1, 1536, 512),
            (0, 100, 512),
            (0, 0, 100),
            (0, u64::MAX - 511, 512),
        ] {
            assert!(read_part(&zero(disk, offset, bytes)[0], &SIZES).is_err(), "{disk} {offset} {bytes}");
        }
        assert!(read_part(&zero(1, 1024, 512)[0], &SIZES).is_ok());
        let cut = zero(0, 0, 512)[0].slice(..10);
        assert!(read_part(&cut, &SIZES).is_err());
    }

    #[test]
    fn extents_are_numbered_through() {
        let map = ExtentMap::new(&[EXTENT_BYTES + 512, EXTENT_BYTES]);
        assert_eq!(map.extents(), 3);
        assert_eq!(map.place(PageIndex(1)), (0, EXTENT_BYTES..EXTENT_BYTES + 512));
        assert_eq!(map.place(PageIndex(2)), (1, 0..EXTENT_BYTES));
        let mut touched = PageSet::empty(3);
        let write = Change::Zero { offset: EXTENT_BYTES - 512, bytes: 1024 };
        map.touch(&DiskChange { disk: 0, change: write }, &mut touched);
        map.touch(&DiskChange { disk: 1, change: Change::Flush }, &mut touched);
        assert_eq!(touched, set(3, &[0, 1]));
    }

    #[test]
    fn an_extent_written_to_is_still_owed_and_an_aborted_epoch_returns_both() {
        let mut ledger = ExtentLedger::owing_all(4);
        ledger.send_in(EpochId(5), &set(4, &[0, 1]), &set(4, &[1, 3]));
        assert_eq!(*ledger.owed(), set(4, &[2, 3]));
        ledger.acked(EpochId(5));
        assert_eq!((ledger.filled(), ledger.owed_at_once()), (None, None));
        ledger.send_in(EpochId(6), &set(4, &[2, 3]), &set(4, &[0]));
        ledger.send_in(EpochId(7), &set(4, &[]), &set(4, &[1]));
        assert!(ledger.owed().is_empty());
        ledger.abort_after(EpochId(6));
        assert_eq!(*ledger.owed(), set(4, &[1]));
        assert_eq!((ledger.filled(), ledger.owed_at_once()), (Some(EpochId(6)), Some(&set(4, &[1]))));
        ledger.abort_after(EpochId(5));
        assert_eq!(*ledger.owed(), set(4, &[0, 1, 2, 3]));
        assert_eq!((ledger.filled(), ledger.owed_at_once()), (None, None));
    }

    /// Found by the simulator: it was listed by an epoch before, and took over without what it had missed since.
    #[test]
    fn what_a_filled_replica_misses_is_owed_at_once() {
        let mut ledger = ExtentLedger::owing_all(2);
        ledger.send_in(EpochId(1), &set(2, &[0, 1]), &set(2, &[]));
        ledger.owe(&set(2, &[1]));
        assert_eq!(ledger.owed_at_once(), Some(&set(2, &[1])));
        ledger.send_in(EpochId(3), &set(2, &[1]), &set(2, &[0]));
        assert_eq!((ledger.filled(), ledger.owed_at_once()), (Some(EpochId(1)), Some(&set(2, &[]))));
    }

    fn change() -> impl Strategy<Value = DiskChange> {
        let data =
            || (0u64..64, 1usize..9, any::<u8>()).prop_map(|(at, n, byte)| (at * 512, vec![byte; n * 512]));
        let change = prop_oneof![
            data().prop_map(|(offset, data)| Change::Write { offset, data: data.into() }),
            data().prop_map(|(offset, data)| Change::Copy { offset, data: data.into() }),
            data().prop_map(|(offset, data)| Change::Zero { offset, bytes: data.len() as u64 }),
            Just(Change::Flush),
        ];
        change.prop_map(|change| DiskChange { disk: 0, change })
    }

    proptest! {
        #[test]
        fn changes_survive_encoding(changes in proptest::collection::vec(change(), 0..20)) {
            let read: Vec<_> = parts(&changes).iter().flat_map(|part| read_part(part, &SIZES).unwrap()).collect();
            prop_assert_eq!(read, changes);
        }

        /// The rule that lets a disk be copied while it is written to.
        #[test]
        fn a_copy_from_any_moment_of_its_epoch_comes_right(
            writes in proptest::collection::vec((0usize..8, 1u8..255), 0..40),
            cuts in proptest::collection::vec(0usize..40, 0..6),
            copies in proptest::collection::vec((0usize..8, 0usize..40), 8..30),
        ) {
            let (mut disk, mut replica) = ([0u8; 8], [0xffu8; 8]);
            let (mut copied, mut pending): ([bool; 8], Vec<(usize, u8)>) = ([false; 8], Vec::new());
            let mut written = Vec::new();
            for (moment, (block, byte)) in writes.iter().chain([(0, 7)].iter()).copied().enumerate() {
                for (block, _) in copies.iter().filter(|(_, at)| *at == moment) {
                    pending.push((*block, disk[*block]));
                    copied[*block] = true;
                }
                disk[block] = byte;
                written.push((block, byte));
                if cuts.contains(&moment) {
                    pending.drain(..).for_each(|(block, byte)| replica[block] = byte);
                    written.drain(..).for_each(|(block, byte)| replica[block] = byte);
                    for block in 0..8 {
                        prop_assert!(!copied[block] || replica[block] == disk[block]);
                    }
                }
            }
        }
    }
}
