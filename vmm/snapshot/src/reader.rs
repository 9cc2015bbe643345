//! Reading a snapshot: everything but page contents is read and checked when it is opened.

use std::fs::File;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::SnapshotError;
use crate::format::{
    Block, BlockError, ENTRY_BYTES, FORMAT_VERSION, Footer, Header, Places, Section, padded,
};
use crate::index::{Index, Located, Run};
use crate::limits::{
    EXTENT_PAGES_MAX, METADATA_BYTES_MAX, PAGE_BYTES, RAM_PAGES_MAX, STATE_BYTES_MAX, STREAM_BYTES,
};
use crate::memory::MemoryMut;
use crate::read_at::ReadAt;

const PAGE: u64 = PAGE_BYTES as u64;

/// How far an operation is: bytes done, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// An open snapshot. Its index and blobs are known to be whole; page contents are checked whenever they are read.
#[derive(Debug)]
pub struct Snapshot<R = File> {
    source: R,
    path: PathBuf,
    writer: String,
    metadata: Vec<u8>,
    state: Vec<u8>,
    data_offset: u64,
    index: Index,
}

impl Snapshot<File> {
    /// Opens the snapshot at `path` without reading page contents.
    ///
    /// # Errors
    /// [`SnapshotError`]: unreadable, foreign, of another version, cut short, or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Snapshot, SnapshotError> {
        let path = path.as_ref();
        let source = File::open(path).map_err(|source| SnapshotError::Read {
            path: path.into(),
            part: "the beginning",
            source,
        })?;
        Snapshot::from_source(source, path)
    }
}

impl<R: ReadAt> Snapshot<R> {
    /// As [`Snapshot::open`], from any bytes; `path` is what errors call them.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn from_source(source: R, path: impl Into<PathBuf>) -> Result<Snapshot<R>, SnapshotError> {
        let opening = Opening { source: &source, path: path.into() };
        let header = opening.header()?;
        let footer = opening.footer(&header)?;
        let places = opening.places(&footer)?;
        let metadata = opening.blob("metadata", places.metadata, footer.metadata)?;
        let state = opening.blob("machine state", places.state, footer.state)?;
        let index = opening.index(places.index, &footer)?;
        let path = opening.path;
        let data_offset = places.data;
        Ok(Snapshot { source, path, writer: header.1, metadata, state, data_offset, index })
    }

    /// What the caller of the writer gave as metadata.
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// The machine state.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// Pages of RAM, zero ones included.
    pub fn ram_pages(&self) -> u64 {
        self.index.ram_pages()
    }

    /// Pages whose contents are in the file.
    pub fn data_pages(&self) -> u64 {
        self.index.data_pages()
    }

    /// Name and version of the build that wrote the file.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all page contents and checks them.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] or [`SnapshotError::Read`] for the first extent that is not as it was written.
    pub fn verify(&self, progress: Progress<'_>) -> Result<(), SnapshotError> {
        self.each_run(progress, |_, _| Ok(()))
    }

    /// Reads one page into `into`; returns false if it is zero. The whole extent around it is read and checked.
    ///
    /// # Errors
    /// [`SnapshotError::NoSuchPage`], or as [`Snapshot::verify`]; `into` is zero then.
    pub fn read_page(&self, page: u64, into: &mut [u8; PAGE_BYTES]) -> Result<bool, SnapshotError> {
        into.fill(0);
        if page >= self.ram_pages() {
            let path = self.path.clone();
            return Err(SnapshotError::NoSuchPage { path, page, pages: self.ram_pages() });
        }
        let Located::Data(run) = self.index.locate(page) else { return Ok(false) };
        let mut extent = vec![0; bytes_of(run.pages)];
        self.read_run(&run, &mut extent)?;
        let at = bytes_of(page - run.first_page);
        into.copy_from_slice(&extent[at..at + PAGE_BYTES]);
        Ok(true)
    }

    /// Restores all of RAM: pages with contents are written, all others made zero.
    ///
    /// # Errors
    /// As [`Snapshot::verify`], and [`SnapshotError::Memory`]; `memory` is useless then.
    pub fn load_all(&self, memory: &dyn MemoryMut, progress: Progress<'_>) -> Result<(), SnapshotError> {
        let refused = |page| move |source| SnapshotError::Memory { path: self.path.clone(), page, source };
        let mut next = 0;
        let zero = |from: u64, to: u64| {
            if from == to { Ok(()) } else { memory.zero(from, to - from).map_err(refused(from)) }
        };
        self.each_run(progress, |run, contents| {
            zero(next, run.first_page)?;
            next = run.end();
            memory.write(run.first_page, contents).map_err(refused(run.first_page))
        })?;
        zero(next, self.ram_pages())
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Reads and checks the contents of `run`; `into` has its size.
    pub(crate) fn read_run(&self, run: &Run, into: &mut [u8]) -> Result<(), SnapshotError> {
        let part = "page contents";
        let offset = self.data_offset + run.data_page * PAGE;
        let read = self.source.read_exact_at(into, offset);
        read.map_err(|source| SnapshotError::Read { path: self.path.clone(), part, source })?;
        if xxh3_64(into) == run.sum {
            return Ok(());
        }
        let reason = format!("pages {} to {} do not match their checksum", run.first_page, run.end() - 1);
        Err(SnapshotError::Damaged { path: self.path.clone(), part, reason })
    }

    fn each_run(
        &self,
        progress: Progress<'_>,
        mut each: impl FnMut(&Run, &[u8]) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut buffer = vec![0; EXTENT_PAGES_MAX * PAGE_BYTES];
        let total = self.data_pages() * PAGE;
        progress(0, total);
        for run in self.index.runs() {
            let contents = &mut buffer[..bytes_of(run.pages)];
            self.read_run(run, contents)?;
            each(run, contents)?;
            progress((run.data_page + run.pages) * PAGE, total);
        }
        Ok(())
    }
}

/// Bytes of a number of pages that is within the limits.
pub(crate) fn bytes_of(pages: u64) -> usize {
    usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(PAGE_BYTES)
}

/// A file not yet believed.
struct Opening<'a, R> {
    source: &'a R,
    path: PathBuf,
}

impl<R: ReadAt> Opening<'_, R> {
    fn incomplete(&self, reason: impl Into<String>) -> SnapshotError {
        SnapshotError::Incomplete { path: self.path.clone(), reason: reason.into() }
    }

    fn damaged(&self, part: &'static str, reason: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged { path: self.path.clone(), part, reason: reason.into() }
    }

    fn read(&self, part: &'static str, into: &mut [u8], offset: u64) -> Result<(), SnapshotError> {
        self.source.read_exact_at(into, offset).map_err(|source| SnapshotError::Read {
            path: self.path.clone(),
            part,
            source,
        })
    }

    fn length(&self) -> Result<u64, SnapshotError> {
        self.source.length().map_err(|source| SnapshotError::Read {
            path: self.path.clone(),
            part: "the length",
            source,
        })
    }

    /// The header's checksum and the name of the writing build.
    fn header(&self) -> Result<(u64, String), SnapshotError> {
        let mut block: Block = [0; PAGE_BYTES];
        let there = usize::try_from(self.length()?).unwrap_or(usize::MAX).min(PAGE_BYTES);
        self.read("the header", &mut block[..there], 0)?;
        let header = match Header::decode(&block) {
            Err(BlockError::Foreign) => return Err(SnapshotError::Foreign { path: self.path.clone() }),
            _ if there < PAGE_BYTES => return Err(self.incomplete("it ends within its header")),
            Err(BlockError::Checksum) => return Err(self.damaged("header", "it does not match its checksum")),
            Ok(header) => header,
        };
        if header.version != FORMAT_VERSION {
            let path = self.path.clone();
            return Err(SnapshotError::Version { path, found: header.version, writer: header.writer });
        }
        Ok((xxh3_64(&block), header.writer))
    }

    fn footer(&self, header: &(u64, String)) -> Result<Footer, SnapshotError> {
        let length = self.length()?;
        if !length.is_multiple_of(PAGE) || length < 2 * PAGE {
            return Err(self.incomplete(format!("its length, {length} bytes, is not one a whole file has")));
        }
        let mut block: Block = [0; PAGE_BYTES];
        self.read("the footer", &mut block, length - PAGE)?;
        let footer = match Footer::decode(&block) {
            Err(BlockError::Foreign) => return Err(self.incomplete("the end mark is missing")),
            Err(BlockError::Checksum) => return Err(self.damaged("footer", "it does not match its checksum")),
            Ok(footer) => footer,
        };
        if footer.file_bytes != length {
            let said = footer.file_bytes;
            return Err(self.incomplete(format!("it was written with {said} bytes and has {length}")));
        }
        if footer.header_sum != header.0 {
            return Err(self.damaged("footer", "it belongs to another header"));
        }
        Ok(footer)
    }

    /// Checks all lengths against the limits and against the file's, then derives the offsets.
    fn places(&self, footer: &Footer) -> Result<Places, SnapshotError> {
        let entries = footer.index.bytes / ENTRY_BYTES as u64;
        let reason = if !(1..=RAM_PAGES_MAX).contains(&footer.ram_pages) {
            "no machine has that much RAM, or none"
        } else if footer.data_pages > footer.ram_pages {
            "more page contents than pages"
        } else if !footer.index.bytes.is_multiple_of(ENTRY_BYTES as u64) || entries > footer.data_pages {
            "the index has an impossible length"
        } else if footer.metadata.bytes > METADATA_BYTES_MAX as u64
            || footer.state.bytes > STATE_BYTES_MAX as u64
        {
            "metadata or machine state is larger than any"
        } else if footer.places().footer + PAGE != footer.file_bytes {
            "the sections do not add up to the file"
        } else {
            return Ok(footer.places());
        };
        Err(self.damaged("footer", reason))
    }

    fn blob(&self, part: &'static str, offset: u64, section: Section) -> Result<Vec<u8>, SnapshotError> {
        // Within the limits, as `places` has seen.
        let whole = usize::try_from(padded(section.bytes)).unwrap_or(usize::MAX);
        let mut blob = vec![0; whole];
        self.read(part, &mut blob, offset)?;
        if xxh3_64(&blob) != section.sum {
            return Err(self.damaged(part, "it does not match its checksum"));
        }
        blob.truncate(usize::try_from(section.bytes).unwrap_or(usize::MAX));
        Ok(blob)
    }

    /// Reads the index piece by piece, so that a wrong length cannot ask for memory the extents do not justify.
    fn index(&self, offset: u64, footer: &Footer) -> Result<Index, SnapshotError> {
        let part = "index";
        let mut index = Index::new(footer.ram_pages);
        let mut sum = Xxh3::new();
        let mut piece = vec![0; STREAM_BYTES / ENTRY_BYTES * ENTRY_BYTES];
        let mut at = 0;
        while at < padded(footer.index.bytes) {
            let left = padded(footer.index.bytes) - at;
            let bytes = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.read(part, &mut piece[..bytes], offset + at)?;
            sum.update(&piece[..bytes]);
            let entries = usize::try_from(footer.index.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
            index.extend(&piece[..bytes.min(entries)]).map_err(|reason| self.damaged(part, reason))?;
            at += bytes as u64;
        }
        if sum.digest() != footer.index.sum {
            return Err(self.damaged(part, "it does not match its checksum"));
        }
        if index.data_pages() != footer.data_pages {
            return Err(self.damaged(part, "its extents do not add up to the page contents"));
        }
        Ok(index)
    }
}
