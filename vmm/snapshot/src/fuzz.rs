//! Entry point for a fuzzer.

use xxhash_rust::xxh3::xxh3_64;

use crate::format::{Block, Footer, Section, padded};
use crate::limits::PAGE_BYTES;
use crate::reader::Snapshot;

/// Decodes `data` as a snapshot file and reads its pages: as it is, and once more with checksums that are right, for with
/// wrong ones few changes reach anything but the first comparison.
pub fn fuzz_snapshot(data: &[u8]) {
    use_it(data);
    if let Some(sealed) = with_right_checksums(data) {
        use_it(&sealed);
    }
}

fn use_it(data: &[u8]) {
    let Ok(snapshot) = Snapshot::from_source(data, "fuzz") else { return };
    let verified = snapshot.verify(&mut |_, _| ());
    let mut page = [0; PAGE_BYTES];
    for number in 0..snapshot.ram_pages().min(256) {
        let read = snapshot.read_page(number, &mut page);
        assert!(verified.is_err() || read.is_ok(), "page {number} was fine a moment ago");
    }
}

fn with_right_checksums(data: &[u8]) -> Option<Vec<u8>> {
    let mut file = data[..data.len() / PAGE_BYTES * PAGE_BYTES].to_vec();
    let last = file.len().checked_sub(PAGE_BYTES)?;
    seal(&mut file[..PAGE_BYTES]);
    seal(&mut file[last..]);
    let block: &Block = file[last..].try_into().ok()?;
    let mut footer = Footer::decode(block).ok()?;
    footer.header_sum = xxh3_64(&file[..PAGE_BYTES]);
    footer.file_bytes = file.len() as u64;
    // Places of impossible lengths would overflow; they are refused before any checksum is looked at.
    if [footer.metadata, footer.state, footer.index].iter().all(|section| section.bytes <= footer.file_bytes)
        && footer.data_pages <= footer.file_bytes
    {
        let places = footer.places();
        footer.metadata.sum = sum_of(&file, places.metadata, footer.metadata)?;
        footer.state.sum = sum_of(&file, places.state, footer.state)?;
        footer.index.sum = sum_of(&file, places.index, footer.index)?;
    }
    file[last..].copy_from_slice(&footer.encode());
    Some(file)
}

fn seal(block: &mut [u8]) {
    let (body, sum) = block.split_at_mut(PAGE_BYTES - 8);
    sum.copy_from_slice(&xxh3_64(body).to_le_bytes());
}

fn sum_of(file: &[u8], offset: u64, section: Section) -> Option<u64> {
    let start = usize::try_from(offset).ok()?;
    let bytes = usize::try_from(padded(section.bytes)).ok()?;
    Some(xxh3_64(file.get(start..)?.get(..bytes)?))
}
