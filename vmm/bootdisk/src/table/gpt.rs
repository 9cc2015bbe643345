//! The GPT, with its sums checked, and its backup at the disk's end.

use std::io;

use super::{Partition, Scheme, u32_at, u64_at};
use crate::disk::Slice;
use crate::limits;

const HEADER_BYTES_MIN: u32 = 92;
const SECTORS: [u64; 2] = [512, 4096];
/// Where GRUB puts its core image on BIOS machines (GUID as it lies on the disk).
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

/// What a header says, checked.
struct Header {
    sector: u64,
    array_at: u64,
    entries: u32,
    entry_bytes: u32,
    array_sum: u32,
}

/// The partitions of the first intact copy; nothing if there is none.
pub(super) fn partitions(disk: &Slice) -> io::Result<Option<Vec<Partition>>> {
    for sector in SECTORS {
        let last = (disk.bytes() / sector).saturating_sub(1);
        for lba in [1, last] {
            let Some(header) = header(disk, sector, lba)? else {
                continue;
            };
            if let Some(array) = array(disk, &header)? {
                return Ok(Some(entries(disk, &header, &array)));
            }
            tracing::debug!(lba, "a GPT's entries do not fit their sum");
        }
    }
    Ok(None)
}

fn header(disk: &Slice, sector: u64, lba: u64) -> io::Result<Option<Header>> {
    let Some(at) = lba.checked_mul(sector) else {
        return Ok(None);
    };
    Ok(disk.array::<512>(at)?.and_then(|bytes| checked_header(&bytes, sector, lba)))
}

fn checked_header(bytes: &[u8; 512], sector: u64, lba: u64) -> Option<Header> {
    let length = u32_at(bytes, 12);
    if !bytes.starts_with(b"EFI PART") || !(HEADER_BYTES_MIN..=512).contains(&length) {
        return None;
    }
    let mut summed = bytes.get(..usize::try_from(length).ok()?)?.to_vec();
    summed[16..20].fill(0);
    if crc32fast::hash(&summed) != u32_at(bytes, 16) || u64_at(bytes, 24) != lba {
        return None;
    }
    let (entries, entry_bytes) = (u32_at(bytes, 80), u32_at(bytes, 84));
    let fits = entries <= limits::GPT_ENTRIES_MAX
        && (128..=limits::GPT_ENTRY_BYTES_MAX).contains(&entry_bytes)
        && entry_bytes % 8 == 0;
    let array_at = u64_at(bytes, 72).checked_mul(sector)?;
    fits.then_some(Header { sector, array_at, entries, entry_bytes, array_sum: u32_at(bytes, 88) })
}

fn array(disk: &Slice, header: &Header) -> io::Result<Option<Vec<u8>>> {
    let bytes = u64::from(header.entries) * u64::from(header.entry_bytes);
    // Nothing is allocated for what the disk cannot hold.
    if bytes > limits::GPT_ARRAY_BYTES_MAX || bytes > disk.bytes() {
        return Ok(None);
    }
    let mut array = vec![0; usize::try_from(bytes).unwrap_or(0)];
    match disk.read_at(header.array_at, &mut array) {
        Ok(()) => Ok((crc32fast::hash(&array) == header.array_sum).then_some(array)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

fn entries(disk: &Slice, header: &Header, array: &[u8]) -> Vec<Partition> {
    let size = usize::try_from(header.entry_bytes).unwrap_or(usize::MAX);
    let numbered = (1..).zip(array.chunks_exact(size));
    numbered.filter_map(|(number, entry)| partition(disk, header.sector, number, entry)).collect()
}

fn partition(disk: &Slice, sector: u64, number: u32, entry: &[u8]) -> Option<Partition> {
    let (kind, first, last) = (entry.get(..16)?, u64_at(entry, 32), u64_at(entry, 40));
    if kind == [0; 16] || first == 0 {
        return None;
    }
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let slice = disk.part(first.checked_mul(sector)?, sectors.checked_mul(sector)?)?;
    let role = (kind == BIOS_BOOT).then_some("BIOS boot partition");
    Some(Partition { number, slice, scheme: Scheme::Gpt, role })
}
