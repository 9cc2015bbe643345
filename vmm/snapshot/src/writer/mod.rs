//! Writing a snapshot: parts in their order into a temporary file, then into place with one rename.

mod scan;
mod temporary;

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::fstatvfs;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::SaveError;
use crate::format::{ENTRY_BYTES, Entry, Footer, Header, Section, padded};
use crate::index::Index;
use crate::limits::{
    EXTENT_PAGES_MAX, METADATA_BYTES_MAX, PAGE_BYTES, RAM_PAGES_MAX, STATE_BYTES_MAX, STREAM_BYTES,
};
use crate::memory::{Memory, Slot};
use crate::reader::{Progress, bytes_of};
use temporary::Temporary;

const PAGE: u64 = PAGE_BYTES as u64;
const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Metadata,
    State,
    Pages,
    Commit,
}

/// A snapshot being written. Metadata, state and pages are given in this order, once each; only [`SnapshotWriter::commit`]
/// makes a snapshot of it. Dropped before, or after an error, it leaves nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    out: Output,
    stage: Stage,
    footer: Footer,
    index: Index,
}

impl SnapshotWriter {
    /// Begins a snapshot that will be at `path`. A snapshot that is there stays until the new one is whole.
    ///
    /// # Errors
    /// [`SaveError::Name`], [`SaveError::Room`] or [`SaveError::Write`].
    pub fn create(path: impl AsRef<Path>) -> Result<SnapshotWriter, SaveError> {
        let mut out = Output::create(path.as_ref())?;
        let header = Header::of_this_build().encode();
        out.put("the header", &header)?;
        let footer = Footer { header_sum: xxh3_64(&header), ..Footer::default() };
        Ok(SnapshotWriter { out, stage: Stage::Metadata, footer, index: Index::new(0) })
    }

    /// Writes the metadata, at most [`METADATA_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn metadata(&mut self, metadata: &[u8]) -> Result<(), SaveError> {
        self.turn(Stage::Metadata, "metadata")?;
        self.footer.metadata = self.blob("metadata", metadata, METADATA_BYTES_MAX)?;
        self.stage = Stage::State;
        Ok(())
    }

    /// Writes the machine state, at most [`STATE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn state(&mut self, state: &[u8]) -> Result<(), SaveError> {
        self.turn(Stage::State, "machine state")?;
        self.footer.state = self.blob("machine state", state, STATE_BYTES_MAX)?;
        self.stage = Stage::Pages;
        Ok(())
    }

    /// Writes all pages of `memory` that are not zero. `progress` counts bytes looked at.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn pages(&mut self, memory: &impl Memory, progress: Progress<'_>) -> Result<(), SaveError> {
        self.turn(Stage::Pages, "pages")?;
        let slots = self.check_slots(memory.slots())?;
        let parts = scan::populated(&slots, memory.backing()).map_err(|source| self.out.memory(0, source))?;
        let total = parts.iter().map(|part| part.pages).sum::<u64>() * PAGE;
        self.out.needed = self.bound(total);
        let mut buffer = vec![0; STREAM_BYTES];
        let mut done = 0;
        progress(0, total);
        for (first_page, bytes) in pieces(&parts) {
            let piece = &mut buffer[..bytes];
            memory.read(first_page, piece).map_err(|source| self.out.memory(first_page, source))?;
            self.piece(first_page, piece)?;
            done += bytes as u64;
            self.out.needed = self.bound(total - done);
            progress(done, total);
        }
        self.footer.data_pages = self.index.data_pages();
        self.stage = Stage::Commit;
        Ok(())
    }

    /// Writes index and footer, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`SaveError`]. If only the last step failed, making the folder durable, the new snapshot is already in place.
    pub fn commit(mut self) -> Result<(), SaveError> {
        self.turn(Stage::Commit, "commit")?;
        self.footer.index = self.write_index()?;
        self.footer.file_bytes = self.out.written + PAGE;
        let footer = self.footer.encode();
        self.out.put("the footer", &footer)?;
        self.out.finish()
    }

    fn turn(&self, stage: Stage, part: &'static str) -> Result<(), SaveError> {
        if self.stage == stage {
            return Ok(());
        }
        Err(SaveError::Order { path: self.out.path.clone(), part })
    }

    fn blob(&mut self, part: &'static str, blob: &[u8], max: usize) -> Result<Section, SaveError> {
        if blob.len() > max {
            return Err(self.out.size(part, blob.len() as u64, "bytes", max as u64));
        }
        let mut whole = blob.to_vec();
        whole.resize(blob.len().next_multiple_of(PAGE_BYTES), 0);
        self.out.put(part, &whole)?;
        Ok(Section { bytes: blob.len() as u64, sum: xxh3_64(&whole) })
    }

    /// Sets the size of RAM from slots that are what [`Memory::slots`] promises.
    fn check_slots(&mut self, slots: Vec<Slot>) -> Result<Vec<Slot>, SaveError> {
        let ram_pages = slots.last().map_or(0, Slot::end);
        if !(1..=RAM_PAGES_MAX).contains(&ram_pages) {
            return Err(self.out.size("RAM", ram_pages, "pages", RAM_PAGES_MAX));
        }
        assert!(slots.is_sorted_by(|a, b| a.end() <= b.first_page), "slots of RAM overlap: {slots:?}");
        self.footer.ram_pages = ram_pages;
        self.index = Index::new(ram_pages);
        Ok(slots)
    }

    /// Stores the pages of `piece` that are not zero, as extents.
    fn piece(&mut self, first_page: u64, piece: &[u8]) -> Result<(), SaveError> {
        let pages: Vec<_> = piece.chunks(PAGE_BYTES).collect();
        let mut at = 0;
        for group in pages.chunk_by(|a, b| (*a == ZERO_PAGE) == (*b == ZERO_PAGE)) {
            if group[0] != ZERO_PAGE {
                let contents = &piece[at * PAGE_BYTES..(at + group.len()) * PAGE_BYTES];
                self.extents(first_page + at as u64, contents)?;
            }
            at += group.len();
        }
        Ok(())
    }

    fn extents(&mut self, mut first_page: u64, contents: &[u8]) -> Result<(), SaveError> {
        for extent in contents.chunks(EXTENT_PAGES_MAX * PAGE_BYTES) {
            self.out.put("page contents", extent)?;
            let pages = u32::try_from(extent.len() / PAGE_BYTES).unwrap_or(u32::MAX);
            let pushed = self.index.push(Entry { first_page, pages, sum: xxh3_64(extent) });
            assert_eq!(pushed, Ok(()), "the writer made a wrong extent at page {first_page}");
            first_page += u64::from(pages);
        }
        Ok(())
    }

    /// Most bytes still to be written when `memory_bytes` have not been looked at: all of them, each page an extent of its
    /// own, and index and footer.
    fn bound(&self, memory_bytes: u64) -> u64 {
        let entries = self.index.runs().len() as u64 + memory_bytes / PAGE;
        memory_bytes + padded(entries * ENTRY_BYTES as u64) + PAGE
    }

    fn write_index(&mut self) -> Result<Section, SaveError> {
        let mut sum = Xxh3::new();
        let mut bytes = 0;
        for entry in self.index.encode() {
            self.out.put("the index", &entry)?;
            sum.update(&entry);
            bytes += entry.len() as u64;
        }
        let padding = usize::try_from(padded(bytes) - bytes).unwrap_or(0);
        self.out.put("the index", &ZERO_PAGE[..padding])?;
        sum.update(&ZERO_PAGE[..padding]);
        Ok(Section { bytes, sum: sum.digest() })
    }
}

/// First page and bytes of the pieces in which `parts` are read.
fn pieces(parts: &[Slot]) -> impl Iterator<Item = (u64, usize)> {
    const PIECE: u64 = (STREAM_BYTES / PAGE_BYTES) as u64;
    parts.iter().flat_map(|part| {
        let cuts = (part.first_page..part.end()).step_by(STREAM_BYTES / PAGE_BYTES);
        cuts.map(|first| (first, bytes_of(PIECE.min(part.end() - first))))
    })
}

/// The temporary file with a buffer before it, and what errors have to say.
#[derive(Debug)]
struct Output {
    temporary: Temporary,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Bytes put so far, buffered ones included.
    written: u64,
    /// Most bytes that come after these, index and footer among them.
    needed: u64,
}

impl Output {
    fn create(path: &Path) -> Result<Output, SaveError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| SaveError::Name { path: path.into() })?;
        let failed = |source| explain(path.into(), "the beginning", 2 * PAGE, 0, source);
        let temporary = Temporary::beside(path, name).map_err(failed)?;
        let buffer = Vec::with_capacity(STREAM_BYTES);
        Ok(Output { temporary, path: path.into(), buffer, written: 0, needed: 0 })
    }

    fn put(&mut self, part: &'static str, bytes: &[u8]) -> Result<(), SaveError> {
        if self.buffer.len() + bytes.len() > STREAM_BYTES {
            self.flush(part)?;
        }
        self.written += bytes.len() as u64;
        if bytes.len() >= STREAM_BYTES {
            return self.temporary.file().write_all(bytes).map_err(|e| self.failed(part, e));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self, part: &'static str) -> Result<(), SaveError> {
        self.temporary.file().write_all(&self.buffer).map_err(|e| self.failed(part, e))?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<(), SaveError> {
        self.flush("the end")?;
        let Output { temporary, path, written, .. } = self;
        let free = free_bytes(&temporary);
        temporary.place().map_err(|source| explain(path, "the whole", written, free, source))
    }

    fn failed(&self, part: &'static str, source: io::Error) -> SaveError {
        let needed = self.written.saturating_add(self.needed);
        explain(self.path.clone(), part, needed, free_bytes(&self.temporary), source)
    }

    fn memory(&self, page: u64, source: io::Error) -> SaveError {
        SaveError::Memory { path: self.path.clone(), page, source }
    }

    fn size(&self, part: &'static str, size: u64, unit: &'static str, max: u64) -> SaveError {
        SaveError::Size { path: self.path.clone(), part, size, unit, max }
    }
}

fn explain(path: PathBuf, part: &'static str, needed: u64, free: u64, source: io::Error) -> SaveError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        FileTooLarge | QuotaExceeded | StorageFull => SaveError::Room { path, part, needed, free, source },
        _ => SaveError::Write { path, part, source },
    }
}

/// What will be free when the temporary file is removed.
fn free_bytes(temporary: &Temporary) -> u64 {
    let free = fstatvfs(temporary.file()).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    free.saturating_add(temporary.file().metadata().map_or(0, |file| file.blocks().saturating_mul(512)))
}
