//! The MBR and its chain of logical partitions.

use std::io;

use super::{Partition, Scheme, u32_at};
use crate::disk::Slice;
use crate::limits;

const SECTOR: u64 = 512;
const GPT_INSIDE: u8 = 0xee;

/// One entry of a table sector; sectors from where the table's kind says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Entry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }
}

fn signed(sector: &[u8; 512]) -> bool {
    sector[510..] == [0x55, 0xaa]
}

fn entries(sector: &[u8; 512]) -> [Entry; 4] {
    std::array::from_fn(|i| {
        let entry = &sector[446 + 16 * i..462 + 16 * i];
        Entry { kind: entry[4], start: u32_at(entry, 8), sectors: u32_at(entry, 12) }
    })
}

/// The four entries of the first sector, if it is a table: boot sectors of file systems bear the same signature, but
/// have code or nothing in the entries' place.
pub(super) fn primary(sector: &[u8; 512]) -> Option<[Entry; 4]> {
    let flags_fit = (0..4).all(|i| sector[446 + 16 * i] & 0x7f == 0);
    let found = entries(sector);
    let starts_fit = found.iter().all(|e| !e.is_used() || e.start > 0);
    (signed(sector) && flags_fit && starts_fit && found.iter().any(|e| e.is_used())).then_some(found)
}

/// True if the table only keeps old tools off a GPT.
pub(super) fn is_protective(entries: &[Entry; 4]) -> bool {
    entries.iter().any(|e| e.kind == GPT_INSIDE)
}

/// Primary partitions are 1 to 4, logical ones count from 5.
pub(super) fn partitions(disk: &Slice, primary: &[Entry; 4]) -> io::Result<Vec<Partition>> {
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(primary).filter(|(_, e)| e.is_used() && !e.is_extended()) {
        found.extend(partition(disk, number, entry.start.into(), *entry));
    }
    if let Some(extended) = primary.iter().find(|e| e.is_used() && e.is_extended()) {
        found.extend(logical(disk, *extended)?);
    }
    Ok(found)
}

fn partition(disk: &Slice, number: u32, start: u64, entry: Entry) -> Option<Partition> {
    let slice = disk.part(start.checked_mul(SECTOR)?, u64::from(entry.sectors) * SECTOR)?;
    Some(Partition { number, slice, scheme: Scheme::Mbr, role: None })
}

/// Each sector of the chain has one partition, relative to itself, and the next link, relative to the chain's begin.
fn logical(disk: &Slice, extended: Entry) -> io::Result<Vec<Partition>> {
    let (begin, mut at, mut found) = (u64::from(extended.start), u64::from(extended.start), Vec::new());
    for number in (5..).take(limits::LOGICAL_PARTITIONS_MAX) {
        let Some(sector) = disk.array::<512>(at * SECTOR)?.filter(signed) else {
            break;
        };
        let [data, next, ..] = entries(&sector);
        if data.is_used() && !data.is_extended() {
            found.extend(partition(disk, number, at + u64::from(data.start), data));
        }
        if !(next.is_used() && next.is_extended()) {
            break;
        }
        at = begin + u64::from(next.start);
    }
    Ok(found)
}
