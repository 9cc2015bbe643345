//! Partition tables (GUID Partition Table, UEFI specification 2.10 chapter 5), written from given identities so that the same
//! input gives the same bytes.

use crate::limits::PARTITIONS_MAX;

/// Bytes of a sector; the tables count in these.
pub const SECTOR: u64 = 512;
/// Type of a partition with a Linux file system.
pub const LINUX: Guid =
    Guid::new(0x0fc6_3daf, 0x8483, 0x4772, [0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);
/// Type of the partition in which a boot loader for old firmware keeps itself.
pub const BIOS_BOOT: Guid =
    Guid::new(0x2168_6148, 0x6449, 0x6e6f, [0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49]);

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_BYTES: usize = 92;
const ENTRY_BYTES: usize = 128;
const ENTRIES: usize = 128;
/// Sectors of the table of entries.
const TABLE_SECTORS: u64 = 32;
const NAME_UNITS: usize = 36;

/// An identity in the byte order that the table uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    const fn new(a: u32, b: u16, c: u16, rest: [u8; 8]) -> Self {
        let (a, b, c, r) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), rest);
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]])
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// What it is for.
    pub kind: Guid,
    /// Its own identity.
    pub id: Guid,
    /// First byte; a multiple of [`SECTOR`].
    pub start: u64,
    /// Bytes; a multiple of [`SECTOR`].
    pub bytes: u64,
    /// At most 36 characters.
    pub name: String,
}

/// The table of a disk of `disk_bytes`: what to write at which offset.
pub fn table(disk_bytes: u64, disk: Guid, partitions: &[Partition]) -> [(u64, Vec<u8>); 3] {
    let last = disk_bytes / SECTOR - 1;
    let mut entries = vec![0; ENTRIES * ENTRY_BYTES];
    for partition in partitions {
        let at = (partition.number as usize - 1) * ENTRY_BYTES;
        entries[at..at + ENTRY_BYTES].copy_from_slice(&entry(partition));
    }
    let mut front = protective_mbr(last);
    front.extend_from_slice(&header(1, last, 2, last, disk, &entries));
    front.extend_from_slice(&entries);
    let back_table = last - TABLE_SECTORS;
    [
        (0, front),
        (back_table * SECTOR, entries.clone()),
        (last * SECTOR, header(last, 1, back_table, last, disk, &entries)),
    ]
}

/// Tells programs that do not know this format that the disk is in use.
fn protective_mbr(last: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let sectors = u32::try_from(last).unwrap_or(u32::MAX);
    sector[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    sector[454..458].copy_from_slice(&1_u32.to_le_bytes());
    sector[458..462].copy_from_slice(&sectors.to_le_bytes());
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn header(here: u64, other: u64, table: u64, last: u64, disk: Guid, entries: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(SIGNATURE);
    for word in [0x0001_0000, 92, 0, 0_u32] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for long in [here, other, 2 + TABLE_SECTORS, last - TABLE_SECTORS - 1] {
        out.extend_from_slice(&long.to_le_bytes());
    }
    out.extend_from_slice(&disk.0);
    out.extend_from_slice(&table.to_le_bytes());
    for word in [128, 128, crc32fast::hash(entries)] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let sum = crc32fast::hash(&out).to_le_bytes();
    out[16..20].copy_from_slice(&sum);
    out.resize(512, 0);
    out
}

fn entry(partition: &Partition) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    let first = partition.start / SECTOR;
    out[..16].copy_from_slice(&partition.kind.0);
    out[16..32].copy_from_slice(&partition.id.0);
    out[32..40].copy_from_slice(&first.to_le_bytes());
    out[40..48].copy_from_slice(&(first + partition.bytes / SECTOR - 1).to_le_bytes());
    for (at, unit) in partition.name.encode_utf16().take(NAME_UNITS).enumerate() {
        out[56 + 2 * at..58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
    }
    out
}

/// Reads the partitions of a disk; `read` gives bytes from an offset, fewer at the end. None when there is no sound table.
pub fn partitions(mut read: impl FnMut(u64, usize) -> Option<Vec<u8>>) -> Option<Vec<Partition>> {
    let header = read(SECTOR, HEADER_BYTES)?;
    let mut summed = header.clone();
    summed.get_mut(16..20)?.fill(0);
    let word = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
    let sound = header.starts_with(SIGNATURE) && word(12)? == 92 && word(16)? == crc32fast::hash(&summed);
    let (count, size) = (word(80)?, word(84)?);
    if !sound || count > PARTITIONS_MAX || size as usize != ENTRY_BYTES {
        return None;
    }
    let table = read(long(&header, 72)?.checked_mul(SECTOR)?, count as usize * ENTRY_BYTES)?;
    if word(88)? != crc32fast::hash(&table) {
        return None;
    }
    let numbered = (1..).zip(table.chunks_exact(ENTRY_BYTES));
    Some(numbered.filter_map(|(number, raw)| read_entry(number, raw)).collect())
}

/// None for an entry that is not used, or that ends before it starts.
fn read_entry(number: u32, raw: &[u8]) -> Option<Partition> {
    let kind = Guid(raw[..16].try_into().ok()?);
    if kind == Guid([0; 16]) {
        return None;
    }
    let (first, last) = (long(raw, 32)?, long(raw, 40)?);
    let bytes = last.checked_sub(first)?.checked_add(1)?.checked_mul(SECTOR)?;
    let units: Vec<u16> =
        raw[56..128].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    let name = units.split(|unit| *unit == 0).next().unwrap_or_default();
    Some(Partition {
        number,
        kind,
        id: Guid(raw[16..32].try_into().ok()?),
        start: first.checked_mul(SECTOR)?,
        bytes,
        name: String::from_utf16_lossy(name),
    })
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Reads `data` as a disk.
#[cfg(feature = "fuzzing")]
pub fn fuzz_gpt(data: &[u8]) {
    let _ = partitions(|at, len| {
        let rest = data.get(usize::try_from(at).ok()?..)?;
        Some(rest[..len.min(rest.len())].to_vec())
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(bytes: u64, partitions: &[Partition]) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(bytes).unwrap()];
        for (at, content) in table(bytes, Guid([7; 16]), partitions) {
            let at = usize::try_from(at).unwrap();
            disk[at..at + content.len()].copy_from_slice(&content);
        }
        disk
    }

    fn read_back(disk: &[u8]) -> Option<Vec<Partition>> {
        partitions(|at, len| {
            let rest = disk.get(usize::try_from(at).ok()?..)?;
            Some(rest[..len.min(rest.len())].to_vec())
        })
    }

    fn partition(number: u32, start: u64, bytes: u64) -> Partition {
        Partition { number, kind: LINUX, id: Guid([9; 16]), start, bytes, name: "root".to_owned() }
    }

    #[test]
    fn what_is_written_is_read() {
        let wanted = [partition(1, 2 * MIB, MIB), partition(14, MIB, MIB)];
        assert_eq!(read_back(&disk(4 * MIB, &wanted)).unwrap(), wanted);
    }

    #[test]
    fn the_copy_at_the_end_agrees_with_the_front() {
        let disk = disk(4 * MIB, &[partition(1, 2 * MIB, MIB)]);
        let last = disk.len() - 512;
        assert_eq!(&disk[1024..1024 + 128], &disk[last - 32 * 512..last - 32 * 512 + 128]);
        assert_eq!(&disk[last..last + 8], SIGNATURE);
        assert_eq!(long(&disk, last + 32), Some(1));
        assert_eq!(&disk[510..512], &[0x55, 0xaa]);
    }

    proptest! {
        #[test]
        fn damage_is_noticed_and_never_panics(at in 512_usize..604, value in any::<u8>(), cut in 0_usize..2048) {
            let sound = disk(4 * MIB, &[partition(1, 2 * MIB, MIB)]);
            let mut damaged = sound.clone();
            damaged[at] = value;
            if damaged != sound {
                prop_assert_eq!(read_back(&damaged), None);
            }
            let _ = read_back(&sound[..cut]);
        }
    }
}
