//! A file that is not exactly what was written is refused, and the reason names it.

use std::fs;

use endophyte_snapshot::{Snapshot, SnapshotError};
use xxhash_rust::xxh3::xxh3_64;

use crate::support::{PAGE, Ram, Saved};

type Opened = Result<Snapshot<Vec<u8>>, SnapshotError>;

/// A small file: header, metadata, 2 pages of state, 5 pages of contents in 3 extents, index, footer.
fn small() -> Vec<u8> {
    let ram = Ram::new(64);
    for page in [1, 2, 10, 11, 63] {
        ram.write(page, &[u8::try_from(page).unwrap(); PAGE]);
    }
    let bytes = fs::read(Saved::of(&ram).path()).unwrap();
    assert_eq!(bytes.len(), 11 * PAGE);
    bytes
}

fn open(bytes: Vec<u8>) -> Opened {
    Snapshot::from_source(bytes, "small")
}

fn open_and_verify(bytes: Vec<u8>) -> Result<(), SnapshotError> {
    open(bytes)?.verify(&mut |_, _| ())
}

/// `bytes` with the checksum of the page at `page` set right again.
fn reseal(bytes: &mut [u8], page: usize) {
    let block = &mut bytes[page * PAGE..(page + 1) * PAGE];
    let sum = xxh3_64(&block[..PAGE - 8]);
    block[PAGE - 8..].copy_from_slice(&sum.to_le_bytes());
}

/// `bytes` with the index changed and all checksums right.
fn with_index(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = small();
    change(&mut bytes[9 * PAGE..10 * PAGE]);
    let sum = xxh3_64(&bytes[9 * PAGE..10 * PAGE]);
    bytes[10 * PAGE + 80..10 * PAGE + 88].copy_from_slice(&sum.to_le_bytes());
    reseal(&mut bytes, 10);
    bytes
}

#[test]
fn a_cut_is_seen_wherever_it_is() {
    let whole = small();
    open_and_verify(whole.clone()).unwrap();
    let boundaries = (0..11).map(|page| page * PAGE);
    for cut in boundaries.flat_map(|at| [at, at + 1, at + PAGE - 1]) {
        let refused = open(whole[..cut].to_vec()).map(|_| ()).unwrap_err();
        let foreign = cut < 8;
        let right = match refused {
            SnapshotError::Foreign { .. } => foreign,
            SnapshotError::Incomplete { .. } => !foreign,
            _ => false,
        };
        assert!(right, "cut at {cut}: {refused}");
    }
}

#[test]
fn bytes_added_at_the_end_are_seen() {
    let mut longer = small();
    longer.extend_from_slice(&[0; PAGE]);
    assert!(matches!(open(longer), Err(SnapshotError::Incomplete { .. })));
    // The end mark once more.
    let mut twice = small();
    twice.extend_from_within(10 * PAGE..);
    let refused = open(twice).unwrap_err();
    assert!(matches!(refused, SnapshotError::Incomplete { .. }), "{refused}");
}

#[test]
fn every_flipped_byte_is_seen() {
    let whole = small();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        let refused = open_and_verify(flipped).expect_err(&format!("byte {at}"));
        let contents = (4 * PAGE..9 * PAGE).contains(&at);
        let by_contents = matches!(&refused, SnapshotError::Damaged { part: "page contents", .. });
        assert_eq!(contents, by_contents, "byte {at}: {refused}");
    }
}

#[test]
fn a_damaged_extent_spoils_only_its_own_pages() {
    let mut bytes = small();
    bytes[6 * PAGE + 5] ^= 1;
    let snapshot = open(bytes).unwrap();
    let mut page = [9; PAGE];
    for number in [10, 11] {
        let refused = snapshot.read_page(number, &mut page).unwrap_err();
        assert!(refused.to_string().contains("pages 10 to 11"), "{refused}");
        assert_eq!(page, [0; PAGE]);
    }
    assert!(snapshot.read_page(2, &mut page).unwrap());
    assert_eq!(page, [2; PAGE]);
    let restored = Ram::new(64);
    assert!(snapshot.load_all(&restored.memory(), &mut |_, _| ()).is_err());
}

#[test]
fn an_index_that_is_wrong_with_right_checksums_is_refused() {
    open_and_verify(with_index(|_| ())).unwrap();
    let set = |at: usize, value: u64, bytes: usize| {
        with_index(move |index| index[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]))
    };
    let cases = [
        (set(24, 2, 8), "overlap"),
        (set(24, 0, 8), "out of order"),
        (set(48, 64, 8), "outside RAM"),
        (set(48, u64::MAX, 8), "outside RAM"),
        (set(24 + 8, 0, 4), "no page"),
        (set(24 + 8, 65, 4), "too many"),
        (set(24 + 8, 1, 4), "do not add up"),
        (set(12, 1, 4), "reserved"),
    ];
    for (bytes, reason) in cases {
        let refused = open(bytes).unwrap_err().to_string();
        assert!(refused.contains("index") && refused.contains(reason), "{reason}: {refused}");
    }
}

#[test]
fn a_footer_that_is_wrong_with_right_checksums_is_refused() {
    // Fields of the footer: file length, header, RAM, contents, metadata, state, index (length and checksum each).
    let cases = [
        (24, u64::MAX, "RAM"),
        (24, 0, "RAM"),
        (24, 3, "more page contents"),
        (32, 4, "add up"),
        (40, 5000, "add up"),
        (40, u64::MAX, "larger"),
        (56, 5 << 20, "larger"),
        (72, 71, "impossible"),
        (72, 24 * 6, "impossible"),
        (72, u64::MAX - 15, "impossible"),
        (16, 1, "another header"),
    ];
    for (at, value, reason) in cases {
        let mut bytes = small();
        bytes[10 * PAGE + at..10 * PAGE + at + 8].copy_from_slice(&value.to_le_bytes());
        reseal(&mut bytes, 10);
        let refused = open(bytes).unwrap_err().to_string();
        assert!(refused.contains("footer") && refused.contains(reason), "{reason}: {refused}");
    }
}

#[test]
fn a_foreign_file_is_called_one_and_a_missing_one_is_named() {
    for bytes in [Vec::new(), b"QFI\xfb".to_vec(), vec![0; 5 * PAGE], b"ENDOSTAT".repeat(PAGE)] {
        assert!(matches!(open(bytes), Err(SnapshotError::Foreign { .. })));
    }
    let missing = Snapshot::open("/nowhere/vm.snapshot").unwrap_err();
    assert!(missing.to_string().contains("/nowhere/vm.snapshot"), "{missing}");
}

#[test]
fn a_newer_format_says_who_wrote_it() {
    let mut bytes = small();
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    bytes[12..27].copy_from_slice(b"endophyte 9.1.0");
    reseal(&mut bytes, 0);
    let refused = open(bytes).unwrap_err();
    assert!(matches!(&refused, SnapshotError::Version { found: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("endophyte 9.1.0"), "{refused}");
}
