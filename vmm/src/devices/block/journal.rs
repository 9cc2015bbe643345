//! What a replica has promised to hold of a disk, in a file beside the image, until the image holds it for good.
//!
//! ```text
//!   an epoch's changes ─> records, the last one marked ─> (synced, if the guest flushed) ─> promise ─> image
//!   image synced ─> file emptied            after a crash: whole epochs ─> image; what follows them was promised to nobody
//! ```
//! A record is a header of 40 bytes (magic, epoch, bytes, flags, hash; numbers little-endian) and changes encoded as they travel.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mycelium_ram_core::disk::{Change, DiskChange, DiskPartWriter, read_part};
use mycelium_ram_core::page_codec::PART_BYTES_MAX;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Appended to the image's name.
const SUFFIX: &str = ".journal";
const MAGIC: [u8; 8] = *b"MYCjrnl\x01";
const HEAD_BYTES: usize = 40;
/// The record ends its epoch.
const LAST: u64 = 1;
/// Bytes after which the image is synced and the journal emptied.
const LONG_BYTES: u64 = 64 << 20;

/// The file in which a replica keeps what it has promised of the disk in `image`.
#[must_use]
pub fn path_of(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    end: u64,
    /// Where each epoch begins of which it is not known that it is kept.
    begins: VecDeque<(u64, u64)>,
}

impl Journal {
    /// An empty journal beside `image`, whose content the image has already.
    pub(super) fn begin(image: &Path) -> io::Result<Self> {
        if !image.metadata()?.is_file() {
            return Err(io::Error::other("the disk is a device, whose folder is lost with the host"));
        }
        let file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path_of(image))?;
        let mut journal = Self { file, end: 0, begins: VecDeque::new() };
        journal.empty()?;
        Ok(journal)
    }

    /// Appends the changes of an epoch; lasting, if one of them is a flush.
    pub(super) fn append<'a>(
        &mut self,
        epoch: u64,
        changes: impl Iterator<Item = &'a Change>,
    ) -> io::Result<()> {
        let (mut writer, mut parts, mut flushed) = (DiskPartWriter::default(), Vec::new(), false);
        for change in changes {
            flushed |= *change == Change::Flush;
            let full = |part| {
                parts.push(part);
                Ok::<(), io::Error>(())
            };
            writer.push(&DiskChange { disk: 0, change: change.clone() }, full)?;
        }
        parts.extend(writer.finish());
        self.begins.push_back((epoch, self.end));
        let last = parts.len().saturating_sub(1);
        for (at, part) in parts.iter().enumerate() {
            self.write(epoch, if at == last { LAST } else { 0 }, part)?;
        }
        if flushed { self.file.sync_data() } else { Ok(()) }
    }

    fn write(&mut self, epoch: u64, flags: u64, part: &[u8]) -> io::Result<()> {
        let mut record = Vec::with_capacity(HEAD_BYTES + part.len());
        record.extend(MAGIC);
        for number in [epoch, part.len() as u64, flags, hash(epoch, flags, part)] {
            record.extend(number.to_le_bytes());
        }
        record.extend(part);
        self.file.write_all_at(&record, self.end)?;
        self.end += record.len() as u64;
        Ok(())
    }

    /// Whether all of it has been made.
    pub(super) fn is_made(&self) -> bool {
        self.begins.is_empty()
    }

    /// Whether it is time to sync the image and empty this.
    pub(super) fn is_long(&self) -> bool {
        self.end > LONG_BYTES
    }

    /// The image holds everything for good.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.end = 0;
        self.begins.clear();
        self.file.sync_all()
    }

    /// Epochs up to this one are kept whatever comes.
    pub(super) fn keep(&mut self, through: u64) {
        while self.begins.pop_front_if(|(epoch, _)| *epoch <= through).is_some() {}
    }

    /// Epochs after this one never were: the guest goes on from its end.
    pub(super) fn forget_after(&mut self, epoch: u64) -> io::Result<()> {
        self.keep(epoch);
        let Some((_, begin)) = self.begins.pop_front() else { return Ok(()) };
        self.begins.clear();
        self.end = begin;
        self.file.set_len(begin)?;
        self.file.sync_all()
    }
}

fn hash(epoch: u64, flags: u64, part: &[u8]) -> u64 {
    xxh3_64_with_seed(part, epoch << 1 ^ flags)
}

/// A journal left behind by a process that is gone; `None` if there is none, or nothing in it.
pub(super) fn left_behind(image: &Path, write: bool) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(write).open(path_of(image)) {
        Ok(file) => Ok((file.metadata()?.len() > 0).then_some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the changes of all epochs that are whole to a disk of `bytes` bytes, in order. How many there were.
pub(super) fn replay(
    journal: &File,
    bytes: u64,
    mut apply: impl FnMut(&Change) -> io::Result<()>,
) -> io::Result<u64> {
    let (mut whole, mut epochs, mut at) = (0, 0, 0);
    // Twice: an epoch is only begun if its end is there.
    while let Some((flags, part)) = record(journal, at)? {
        if read_part(&part, &[bytes]).is_err() {
            break;
        }
        at += (HEAD_BYTES + part.len()) as u64;
        if flags & LAST != 0 {
            (whole, epochs) = (at, epochs + 1);
        }
    }
    at = 0;
    while at < whole {
        let Some((_, part)) = record(journal, at)? else { break };
        let changes = read_part(&part, &[bytes]).unwrap_or_default();
        changes.iter().try_for_each(|change| apply(&change.change))?;
        at += (HEAD_BYTES + part.len()) as u64;
    }
    Ok(epochs)
}

/// Flags and content of the record at `at`; `None` if none was written whole.
fn record(journal: &File, at: u64) -> io::Result<Option<(u64, Bytes)>> {
    let mut head = [0; HEAD_BYTES];
    if !read_whole(journal, &mut head, at)? || head[..8] != MAGIC {
        return Ok(None);
    }
    let number = |n: usize| {
        let bytes = head[8 * n..].first_chunk().expect("the header is as long");
        u64::from_le_bytes(*bytes)
    };
    let [epoch, bytes, flags, sum] = [1, 2, 3, 4].map(number);
    let Some(bytes) = usize::try_from(bytes).ok().filter(|bytes| *bytes <= PART_BYTES_MAX) else {
        return Ok(None);
    };
    let mut part = vec![0; bytes];
    let sound = read_whole(journal, &mut part, at + HEAD_BYTES as u64)? && hash(epoch, flags, &part) == sum;
    Ok(sound.then(|| (flags, Bytes::from(part))))
}

fn read_whole(file: &File, into: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(into, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Bytes of the disk that journals are fuzzed against.
#[cfg(feature = "fuzzing")]
const FUZZED_BYTES: u64 = 64 << 10;

/// Entry point for fuzzing: a journal of any content is replayed inside the disk, or not at all.
#[cfg(feature = "fuzzing")]
pub fn fuzz_journal(data: &[u8]) {
    let file = tempfile::tempfile().expect("a file can be made");
    file.write_all_at(data, 0).expect("it can be written");
    let inside = |change: &Change| {
        assert!(change.range().end <= FUZZED_BYTES);
        Ok(())
    };
    replay(&file, FUZZED_BYTES, inside).expect("the file can be read");
}

/// Journals to begin with.
#[cfg(feature = "fuzzing")]
pub fn seeds_journal() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let image = folder.path().join("image");
    File::create_new(&image).expect("an image can be made");
    let mut journal = Journal::begin(&image).expect("a journal can be made");
    let write = Change::Write { offset: 512, data: Bytes::from_static(&[7; 512]) };
    let zero = Change::Zero { offset: 4096, bytes: 8192 };
    journal.append(3, [&write, &Change::Flush].into_iter()).expect("it can be written");
    journal.append(4, [&zero].into_iter()).expect("it can be written");
    vec![std::fs::read(path_of(&image)).expect("it can be read")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 64 << 10;

    fn image_in(folder: &tempfile::TempDir) -> PathBuf {
        let image = folder.path().join("disk.img");
        File::create_new(&image).unwrap();
        image
    }

    fn write(block: u64, byte: u8) -> Change {
        Change::Write { offset: block * 512, data: Bytes::from(vec![byte; 512]) }
    }

    fn replayed(journal: &File) -> (u64, Vec<Change>) {
        let mut changes = Vec::new();
        let keep = |change: &Change| {
            changes.push(change.clone());
            Ok(())
        };
        let epochs = replay(journal, DISK, keep).unwrap();
        (epochs, changes)
    }

    #[test]
    fn a_journal_is_emptied_when_it_begins() {
        let folder = tempfile::tempdir().unwrap();
        let image = image_in(&folder);
        let mut journal = Journal::begin(&image).unwrap();
        journal.append(1, [&write(0, 1), &Change::Flush].into_iter()).unwrap();
        assert_eq!(
            replayed(&left_behind(&image, false).unwrap().unwrap()),
            (1, vec![write(0, 1), Change::Flush])
        );
        Journal::begin(&image).unwrap();
        assert!(left_behind(&image, false).unwrap().is_none());
        assert!(left_behind(&folder.path().join("other"), false).unwrap().is_none());
    }

    #[test]
    fn epochs_after_the_takeover_never_were() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(&image_in(&folder)).unwrap();
        for epoch in 1..=5 {
            journal.append(epoch, [&write(epoch, 1)].into_iter()).unwrap();
        }
        journal.keep(2);
        journal.forget_after(3).unwrap();
        assert_eq!(replayed(&journal.file), (3, vec![write(1, 1), write(2, 1), write(3, 1)]));
        journal.forget_after(9).unwrap();
        assert_eq!(replayed(&journal.file).0, 3);
    }

    #[test]
    fn an_epoch_longer_than_a_record_is_all_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let image = image_in(&folder);
        let mut journal = Journal::begin(&image).unwrap();
        let disk = 8u64 << 20;
        let long = Change::Write { offset: 0, data: Bytes::from(vec![3; 4 << 20]) };
        journal.append(1, [&long].into_iter()).unwrap();
        let count = |journal: &Journal| {
            let mut bytes = 0;
            let epochs = replay(&journal.file, disk, |change| {
                bytes += change.range().end - change.range().start;
                Ok(())
            });
            (epochs.unwrap(), bytes)
        };
        assert_eq!(count(&journal), (1, 4 << 20));
        journal.file.set_len(journal.end - 1).unwrap();
        assert_eq!(count(&journal), (0, 0), "a part of an epoch is nothing");
    }

    proptest! {
        #[test]
        fn a_journal_cut_or_damaged_anywhere_gives_the_epochs_before(
            epochs in proptest::collection::vec(proptest::collection::vec((0u64..128, any::<u8>()), 1..5), 1..6),
            at in 0.0f64..1.0,
            cut: bool,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut journal = Journal::begin(&image_in(&folder)).unwrap();
            let mut ends = Vec::new();
            for (n, changes) in (1..).zip(&epochs) {
                let changes: Vec<Change> = changes.iter().map(|(block, byte)| write(*block, *byte)).collect();
                journal.append(n, changes.iter()).unwrap();
                ends.push(journal.end);
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a small file")]
            let place = (journal.end as f64 * at) as u64;
            if cut {
                journal.file.set_len(place).unwrap();
            } else {
                let mut byte = [0];
                journal.file.read_exact_at(&mut byte, place).unwrap();
                journal.file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
            }
            let whole = ends.iter().filter(|end| **end <= place).count();
            let expected: Vec<Change> =
                epochs[..whole].iter().flatten().map(|(block, byte)| write(*block, *byte)).collect();
            prop_assert_eq!(replayed(&journal.file), (whole as u64, expected));
        }
    }
}
