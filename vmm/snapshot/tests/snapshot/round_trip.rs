//! What was saved is what is restored.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use endophyte_snapshot::{Memory, SaveError, Slot, Snapshot, SnapshotError, SnapshotWriter};
use proptest::prelude::*;

use crate::support::{METADATA, PAGE, Ram, Saved, names, save};

/// What a page holds, by its number.
#[derive(Clone, Copy, Debug)]
enum Content {
    Hole,
    WrittenZero,
    Byte(u8),
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        3 => Just(Content::Hole),
        1 => Just(Content::WrittenZero),
        3 => any::<u8>().prop_map(Content::Byte),
    ]
}

fn runs() -> impl Strategy<Value = Vec<Content>> {
    let run = (content(), 1..120usize).prop_map(|(content, length)| vec![content; length]);
    prop::collection::vec(run, 1..12).prop_map(|runs| runs.concat())
}

fn ram_of(contents: &[Content]) -> Ram {
    let ram = Ram::new(contents.len() as u64);
    for (page, content) in (0..).zip(contents) {
        match content {
            Content::Hole => {}
            Content::WrittenZero => ram.write(page, &[0; PAGE]),
            Content::Byte(byte) => {
                let mut bytes = [0; PAGE];
                // One byte somewhere is enough to make a page worth keeping.
                bytes[usize::from(*byte) * 16 + 15] = byte.wrapping_add(1).max(1);
                ram.write(page, &bytes);
            }
        }
    }
    ram
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn sparse_memory_survives(contents in runs()) {
        let ram = ram_of(&contents);
        let saved = Saved::of(&ram);
        let snapshot = saved.open();
        prop_assert_eq!(snapshot.ram_pages(), ram.pages);
        let kept = contents.iter().filter(|content| matches!(content, Content::Byte(_))).count();
        prop_assert_eq!(snapshot.data_pages(), kept as u64);
        // Memory that is not empty: restoring must make the other pages zero.
        let restored = Ram::random(ram.pages, 5, 1);
        snapshot.load_all(&restored.memory(), &mut |_, _| ()).unwrap();
        for (page, content) in (0..).zip(&contents) {
            let mut read = [1; PAGE];
            let stored = snapshot.read_page(page, &mut read).unwrap();
            prop_assert_eq!(stored, matches!(content, Content::Byte(_)));
            prop_assert!(read == ram.page(page) && read == restored.page(page), "page {}", page);
        }
    }
}

#[test]
fn blobs_permissions_and_progress() {
    let ram = Ram::random(3000, 5, 2);
    let saved = Saved::of(&ram);
    let snapshot = saved.open();
    assert_eq!(snapshot.metadata(), METADATA);
    assert_eq!(snapshot.state(), [7; 5000]);
    assert!(snapshot.writer().starts_with("endophyte "));
    assert_eq!(fs::metadata(saved.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(saved.folder.path()), ["vm.snapshot"]);
    let mut seen = Vec::new();
    snapshot.verify(&mut |done, total| seen.push((done, total))).unwrap();
    let total = snapshot.data_pages() * PAGE as u64;
    assert!(seen.is_sorted() && seen[0] == (0, total) && seen.last() == Some(&(total, total)), "{seen:?}");
    let mut page = [0; PAGE];
    assert!(matches!(snapshot.read_page(3000, &mut page), Err(SnapshotError::NoSuchPage { page: 3000, .. })));
}

#[test]
fn a_new_snapshot_replaces_the_old_one_and_an_unfinished_one_leaves_nothing() {
    let saved = Saved::of(&Ram::random(100, 5, 3));
    let before = fs::read(saved.path()).unwrap();
    let mut unfinished = SnapshotWriter::create(saved.path()).unwrap();
    unfinished.metadata(b"{}").unwrap();
    assert_eq!(names(saved.folder.path()).len(), 2);
    drop(unfinished);
    assert_eq!(names(saved.folder.path()), ["vm.snapshot"]);
    assert_eq!(fs::read(saved.path()).unwrap(), before);
    let other = Ram::random(50, 9, 4);
    save(&other, &saved.path()).unwrap();
    assert_eq!(saved.open().ram_pages(), 50);
}

#[test]
fn what_a_crash_left_is_removed_but_not_what_somebody_is_writing() {
    let folder = tempfile::tempdir().unwrap();
    File::create(folder.path().join(".vm.snapshot.1-0.partial")).unwrap();
    File::create(folder.path().join(".other.snapshot.1-0.partial")).unwrap();
    let path = folder.path().join("vm.snapshot");
    let writing = SnapshotWriter::create(&path).unwrap();
    save(&Ram::random(10, 5, 5), &path).unwrap();
    let left = names(folder.path());
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(!left.contains(&".vm.snapshot.1-0.partial".to_owned()), "{left:?}");
    drop(writing);
    assert_eq!(names(folder.path()), [".other.snapshot.1-0.partial", "vm.snapshot"]);
}

#[test]
fn parts_out_of_turn_too_large_or_without_ram_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let create = || SnapshotWriter::create(folder.path().join("x")).unwrap();
    assert!(matches!(create().state(&[]), Err(SaveError::Order { part: "machine state", .. })));
    assert!(matches!(create().commit(), Err(SaveError::Order { part: "commit", .. })));
    let large = create().metadata(&vec![0; (1 << 20) + 1]);
    assert!(matches!(large, Err(SaveError::Size { part: "metadata", max: 1_048_576, .. })), "{large:?}");
    let mut writer = create();
    writer.metadata(b"{}").unwrap();
    writer.state(b"").unwrap();
    assert!(matches!(writer.pages(&Ram::new(0).memory(), &mut |_, _| ()), Err(SaveError::Size { .. })));
    drop(writer);
    assert!(matches!(SnapshotWriter::create(folder.path().join("no/x")), Err(SaveError::Write { .. })));
    assert!(matches!(SnapshotWriter::create("/"), Err(SaveError::Name { .. })));
    assert!(names(folder.path()).is_empty());
}

/// Two slots with room between them, without a file behind.
struct TwoSlots<'a>(&'a Ram);

impl Memory for TwoSlots<'_> {
    fn slots(&self) -> Vec<Slot> {
        [(0, 10), (20, 300)].map(|(first_page, pages)| Slot { first_page, pages }).to_vec()
    }

    fn read(&self, first_page: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.0.memory().read(first_page, into)
    }
}

#[test]
fn memory_in_slots_without_a_file_is_saved_without_what_lies_between() {
    let (ram, folder) = (Ram::random(320, 10, 6), tempfile::tempdir().unwrap());
    let path = folder.path().join("vm");
    let mut writer = SnapshotWriter::create(&path).unwrap();
    writer.metadata(b"{}").unwrap();
    writer.state(b"").unwrap();
    writer.pages(&TwoSlots(&ram), &mut |_, _| ()).unwrap();
    writer.commit().unwrap();
    let snapshot = Snapshot::open(&path).unwrap();
    assert_eq!((snapshot.ram_pages(), snapshot.data_pages()), (320, 310));
    let mut page = [0; PAGE];
    for number in 0..320 {
        assert_eq!(snapshot.read_page(number, &mut page).unwrap(), !(10..20).contains(&number));
        assert!(page == if (10..20).contains(&number) { [0; PAGE] } else { ram.page(number) });
    }
}
