//! Tables made to mislead; those in order are tested with whole disks.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::memory::Memory;

const SECTORS: usize = 256;

fn disk(bytes: Vec<u8>) -> Slice {
    Slice::whole(Arc::new(Memory(bytes)))
}

fn put_entry(image: &mut [u8], sector: usize, index: usize, (kind, start, sectors): (u8, u32, u32)) {
    let at = 512 * sector + 446 + 16 * index;
    image[at + 4] = kind;
    image[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
    image[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    image[512 * sector + 510..512 * sector + 512].copy_from_slice(&[0x55, 0xaa]);
}

fn numbers(image: Vec<u8>) -> Vec<u32> {
    partitions(&disk(image)).unwrap().iter().map(|p| p.number).collect()
}

#[test]
fn a_chain_of_logical_partitions_that_loops_ends() {
    let mut image = vec![0; 512 * SECTORS];
    put_entry(&mut image, 0, 0, (0x0f, 8, 100));
    put_entry(&mut image, 8, 0, (0x83, 1, 1));
    put_entry(&mut image, 8, 1, (0x05, 0, 100));
    // The link's start counts from the chain's begin, so 0 is the link itself.
    let found = numbers(image);
    assert_eq!(found.len(), limits::LOGICAL_PARTITIONS_MAX);
    assert_eq!(found[..2], [5, 6]);
}

#[test]
fn partitions_beyond_the_disk_are_left_out_and_long_ones_cut() {
    let mut image = vec![0; 512 * SECTORS];
    put_entry(&mut image, 0, 0, (0x83, 10_000, 5));
    put_entry(&mut image, 0, 1, (0x83, 200, u32::MAX));
    let found = partitions(&disk(image)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].number, found[0].slice.bytes()), (2, 56 * 512));
}

#[test]
fn a_boot_sector_with_code_in_the_tables_place_is_no_table() {
    let mut image = vec![0x90; 512 * 4];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(numbers(image), [0]);
}

#[test]
fn a_protective_mbr_without_a_gpt_is_an_error() {
    let mut image = vec![0; 512 * SECTORS];
    put_entry(&mut image, 0, 0, (0xee, 1, 255));
    assert!(matches!(partitions(&disk(image)), Err(TableError::BrokenGpt)));
}

/// A disk with a GPT header in its second sector that says this of its entries, with all sums right.
fn with_header(entries: u32, entry_bytes: u32, array_lba: u64) -> Vec<u8> {
    let mut image = vec![0; 512 * SECTORS];
    put_entry(&mut image, 0, 0, (0xee, 1, 255));
    let array_bytes = usize::try_from(entries).unwrap().saturating_mul(usize::try_from(entry_bytes).unwrap());
    let at = usize::try_from(array_lba).unwrap_or(0).saturating_mul(512);
    let array = at.checked_add(array_bytes).and_then(|end| image.get(at..end)).map_or(0, crc32fast::hash);
    let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    header.extend(1u64.to_le_bytes());
    header.resize(72, 0);
    header.extend(array_lba.to_le_bytes());
    header.extend([entries, entry_bytes, array].iter().flat_map(|n| n.to_le_bytes()));
    let sum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    image[512..604].copy_from_slice(&header);
    image
}

#[test]
fn counts_and_places_out_of_all_bounds_are_refused_though_their_sums_are_right() {
    assert_eq!(numbers(with_header(128, 128, 2)), [0]);
    for (entries, entry_bytes, array_lba) in [
        (u32::MAX, 128, 2),
        (128, u32::MAX, 2),
        (128, 127, 2),
        (4, 0, 2),
        (128, 128, u64::MAX),
        (128, 128, 1 << 60),
    ] {
        let refused = partitions(&disk(with_header(entries, entry_bytes, array_lba)));
        assert!(matches!(refused, Err(TableError::BrokenGpt)), "{entries} {entry_bytes} {array_lba}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        mut image in prop::collection::vec(any::<u8>(), 0..2048),
        flags in prop::array::uniform4(prop::sample::select(vec![0u8, 0x80])),
        kind in prop::sample::select(vec![0x05u8, 0x0f, 0x83, 0xee]),
    ) {
        if image.len() >= 512 {
            for (i, flag) in flags.iter().enumerate() {
                image[446 + 16 * i] = *flag;
                image[450 + 16 * i] = kind;
            }
            image[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        fuzz(&disk(image));
    }
}
