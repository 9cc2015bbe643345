//! Opening disk images, with the mistakes people make told apart.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use imago::file::File as ImagoFile;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions};

use serde::{Deserialize, Serialize};

use super::journal;
use super::request::SECTOR_BYTES;
use crate::limits::DISK_LAYERS_MAX;
use crate::spec::{DiskCache, DiskFormat, DiskSpec};

const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";
/// Offset of the disk's size in the header of a qcow2 image.
const QCOW2_SIZE_AT: u64 = 24;
/// Offset of the place of a qcow2 image's refcount table in its header.
const QCOW2_COUNTS_AT: u64 = 48;
/// Offset of the size of that table in clusters.
const QCOW2_COUNTS_CLUSTERS_AT: u64 = 56;
/// Bits of an entry of that table that are not part of a place.
const QCOW2_COUNTS_RESERVED: u64 = 0x1ff;
/// Largest block a guest is told of.
const BLOCK_BYTES_MAX: u64 = 4096;

/// A disk at some time, as far as its file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskThen {
    /// Bytes of the image file.
    pub bytes: u64,
    /// Last change of its contents, nanoseconds since 1970.
    pub changed_ns: i128,
}

impl DiskThen {
    /// What these words about a file say.
    pub(crate) fn of(found: &Metadata) -> DiskThen {
        let changed_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        DiskThen { bytes: found.size(), changed_ns }
    }
}

/// Why a disk image cannot be used. It has not been changed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("cannot open disk {}: {source}; check path and permissions{}", path.display(), hint(*readonly))]
    Open {
        /// Its path.
        path: PathBuf,
        /// It was to be read only.
        readonly: bool,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("disk {} is in use by another process; two writers would destroy it: stop the other VM, or make both readonly", path.display())]
    Busy {
        /// Its path.
        path: PathBuf,
    },
    /// Its content is of another format than was said.
    #[error("disk {} {reason}; {remedy}", path.display())]
    Format {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The image's own structures are damaged, or name files that cannot be had.
    #[error("disk {} cannot be used as qcow2: {source}; check it with a qcow2 tool, and that its backing files are there", path.display())]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// What was written cannot be made to last.
    #[error("disk {} does not take what was written to it: {source}; check its storage before anybody else uses it", path.display())]
    Lost {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What was promised of it cannot be made good.
    #[error("the journal {} holds changes that disk {} does not, and cannot be made good: {source}; make both writable for this user, and open the disk \
             once with readonly = false", journal::path_of(path).display(), path.display())]
    Journal {
        /// Path of the disk.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A replica's disk needs a journal.
    #[error("cannot keep {} as the journal of a replica's disk: {source}; use an image file in a folder that this user may write to",
            journal::path_of(path).display())]
    NoJournal {
        /// Path of the disk.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not the disk it was.
    #[error("disk {} has {is} bytes and had {was}; both nodes must name the same image", path.display())]
    Resized {
        /// Its path.
        path: PathBuf,
        /// Bytes now.
        is: u64,
        /// Bytes before.
        was: u64,
    },
}

fn hint(readonly: bool) -> &'static str {
    if readonly { "" } else { ", or set readonly = true" }
}

/// What a guest may do to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Size, a multiple of 512.
    pub(crate) bytes: u64,
    /// Unit of reading and writing without a detour.
    pub(crate) block_bytes: u32,
    pub(crate) readonly: bool,
}

impl Geometry {
    /// Offset of `sector` if `bytes` from there on lie inside the disk and are whole sectors.
    pub(super) fn range(&self, sector: u64, bytes: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes && bytes.is_multiple_of(SECTOR_BYTES)).then_some(offset)
    }
}

/// An open disk image.
#[derive(Debug)]
pub struct DiskImage {
    pub(super) store: Store,
    pub(super) geometry: Geometry,
    /// Alignment that buffers in memory must have, bytes; 1 if any will do.
    pub(super) memory_align: usize,
    /// Through the page cache; held for its lock.
    pub(super) plain: File,
    /// The file as it was found.
    pub(super) found: DiskThen,
}

pub(super) enum Store {
    Raw(File),
    Format(Box<FormatAccess<ImagoFile>>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Store::Raw(_) => "Raw",
            Store::Format(_) => "Format",
        })
    }
}

impl DiskImage {
    /// What a guest will be told of the image, without locking it or trusting what it holds: another process works on it.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(crate) fn survey(spec: &DiskSpec) -> Result<Geometry, ImageError> {
        let fail = |source| ImageError::Open { path: spec.path.clone(), readonly: true, source };
        let mut options = OpenOptions::new();
        options.read(true);
        if spec.cache == DiskCache::Direct && spec.format == DiskFormat::Raw {
            options.custom_flags(libc::O_DIRECT);
        }
        let mut file = options.open(&spec.path).map_err(fail)?;
        let (bytes, block_bytes) = match (spec.format, spec.cache) {
            (DiskFormat::Raw, DiskCache::Direct) => {
                (file.seek(SeekFrom::End(0)).map_err(fail)?, direct_alignment(&file).1)
            }
            (DiskFormat::Raw, DiskCache::Writeback) => (file.seek(SeekFrom::End(0)).map_err(fail)?, 512),
            (DiskFormat::Qcow2, _) => {
                check_magic(&file, spec)?;
                (qcow2_bytes(&file).map_err(fail)?, 512)
            }
        };
        let geometry = geometry(bytes, block_bytes, spec);
        check_size(bytes, geometry, &spec.path)?;
        Ok(geometry)
    }

    /// Bytes of the disk in an image that another process may be working on.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn bytes_of(spec: &DiskSpec) -> Result<u64, ImageError> {
        Self::survey(spec).map(|geometry| geometry.bytes)
    }

    /// Opens the image of a disk. A writable one is locked against other processes of this kind.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(spec: &DiskSpec) -> Result<DiskImage, ImageError> {
        let path = &spec.path;
        let fail = |source| ImageError::Open { path: path.clone(), readonly: spec.readonly, source };
        let direct = spec.cache == DiskCache::Direct;
        let plain = OpenOptions::new().read(true).write(!spec.readonly).open(path).map_err(fail)?;
        lock(&plain, spec)?;
        // Before anybody tries out how the file may be written to: it changes by that.
        let found = DiskThen::of(&plain.metadata().map_err(fail)?);
        // What this host remembers of a disk that another one has written to is not what it holds.
        let _ = rustix::fs::fadvise(&plain, 0, None, rustix::fs::Advice::DontNeed);
        check_magic(&plain, spec)?;
        match spec.format {
            DiskFormat::Raw => {
                let flags = if direct { libc::O_DIRECT } else { 0 };
                let mut options = OpenOptions::new();
                options.read(true).write(!spec.readonly).custom_flags(flags);
                let file = options.open(path).map_err(fail)?;
                let bytes = (&plain).seek(SeekFrom::End(0)).map_err(fail)?;
                let (memory_align, block_bytes) = if direct { direct_alignment(&file) } else { (1, 512) };
                let geometry = geometry(bytes, block_bytes, spec);
                check_size(bytes, geometry, path)?;
                Ok(DiskImage { store: Store::Raw(file), geometry, memory_align, plain, found })
            }
            DiskFormat::Qcow2 => {
                if !spec.readonly {
                    check_counts(&plain, path)?;
                }
                let access = open_qcow2(path, !spec.readonly, direct)?;
                let geometry = geometry(access.size(), 512, spec);
                check_size(access.size(), geometry, path)?;
                Ok(DiskImage {
                    store: Store::Format(Box::new(access)),
                    geometry,
                    memory_align: 1,
                    plain,
                    found,
                })
            }
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl DiskImage {
    /// Reads, and writes if that is allowed, at both ends and in the middle; `surveyed` is what was said of it unopened.
    pub(crate) fn fuzz(&mut self, surveyed: Geometry) {
        assert_eq!(self.geometry, surveyed, "an image is as large as it was said to be");
        let Store::Format(access) = &mut self.store else { return };
        let (mut sector, sectors) = ([0; 512], self.geometry.bytes / SECTOR_BYTES);
        // What is damaged may fail; it may not do worse.
        for offset in [0, sectors / 2, sectors - 1].map(|sector| sector * SECTOR_BYTES) {
            let _ = access.read(&mut sector[..], offset);
            if !self.geometry.readonly {
                let _ = access.write(&sector[..], offset);
                let _ = access.write_zeroes(offset, SECTOR_BYTES);
                let _ = access.discard_to_any(offset, SECTOR_BYTES);
            }
        }
        let _ = access.flush();
    }
}

fn geometry(bytes: u64, block_bytes: u32, spec: &DiskSpec) -> Geometry {
    Geometry { bytes: bytes - bytes % SECTOR_BYTES, block_bytes, readonly: spec.readonly }
}

fn check_size(bytes: u64, geometry: Geometry, path: &Path) -> Result<(), ImageError> {
    if geometry.bytes > 0 {
        return Ok(());
    }
    let reason = format!("has {bytes} bytes, less than one sector");
    let remedy = "make it as large as the disk shall be: truncate -s 10G FILE";
    Err(ImageError::Format { path: path.to_owned(), reason, remedy })
}

/// A writer shuts everybody else out, readers only writers. The lock is the open file's, and goes with it.
fn lock(file: &File, spec: &DiskSpec) -> Result<(), ImageError> {
    let taken = if spec.readonly { file.try_lock_shared() } else { file.try_lock() };
    match taken {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(ImageError::Busy { path: spec.path.clone() }),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(ImageError::Open { path: spec.path.clone(), readonly: spec.readonly, source })
        }
    }
}

fn check_magic(file: &File, spec: &DiskSpec) -> Result<(), ImageError> {
    let fail = |source| ImageError::Open { path: spec.path.clone(), readonly: spec.readonly, source };
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        let reason = "is neither a file nor a block device".to_owned();
        return Err(ImageError::Format { path: spec.path.clone(), reason, remedy: "check the path" });
    }
    let mut magic = Vec::new();
    file.take(QCOW2_MAGIC.len() as u64).read_to_end(&mut magic).map_err(fail)?;
    let (reason, remedy) = match (spec.format, magic == QCOW2_MAGIC) {
        (DiskFormat::Raw, false) | (DiskFormat::Qcow2, true) => return Ok(()),
        (DiskFormat::Raw, true) => (
            "is said to be raw but begins as a qcow2 image does",
            "set format = \"qcow2\" if it is one that you made; a guest may have written this",
        ),
        (DiskFormat::Qcow2, false) => ("is said to be qcow2 but is not", "set format = \"raw\""),
    };
    Err(ImageError::Format { path: spec.path.clone(), reason: reason.to_owned(), remedy })
}

/// Size of the disk in a qcow2 image, from its header: nothing else of it holds still while another process writes.
fn qcow2_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, QCOW2_SIZE_AT)?;
    Ok(u64::from_be_bytes(bytes))
}

/// Refuses an image to be written whose refcounts begin with none for its own header: whoever allocates in it would put
/// refcounts over the header, and `imago` looks for a place for them without end.
fn check_counts(file: &File, path: &Path) -> Result<(), ImageError> {
    let damaged = |source| ImageError::Damaged { path: path.to_owned(), source };
    let mut number = [0; 8];
    file.read_exact_at(&mut number, QCOW2_COUNTS_AT).map_err(damaged)?;
    let table = u64::from_be_bytes(number);
    let mut clusters = [0; 4];
    file.read_exact_at(&mut clusters, QCOW2_COUNTS_CLUSTERS_AT).map_err(damaged)?;
    file.read_exact_at(&mut number, table).map_err(damaged)?;
    if u32::from_be_bytes(clusters) > 0 && u64::from_be_bytes(number) & !QCOW2_COUNTS_RESERVED != 0 {
        return Ok(());
    }
    Err(damaged(io::Error::new(io::ErrorKind::InvalidData, "its refcounts leave out its own header")))
}

/// Opens a qcow2 image and what it is based on.
fn open_qcow2(path: &Path, write: bool, direct: bool) -> Result<FormatAccess<ImagoFile>, ImageError> {
    let damaged = |source| ImageError::Damaged { path: path.to_owned(), source };
    // The parent of a bare name is empty, which is no folder.
    let folder = std::path::absolute(path).map_err(damaged)?;
    let folder = folder.parent().unwrap_or(Path::new("/")).canonicalize().map_err(damaged)?;
    let image = Qcow2::<ImagoFile>::builder_path(path)
        .storage_open_options(StorageOpenOptions::new().direct(direct))
        .write(write)
        .open(SameFolder { folder, above: vec![path.canonicalize().map_err(damaged)?] })
        .map_err(damaged)?;
    Ok(FormatAccess::new(image))
}

/// Lets an image be based on files of its own folder only. An image from elsewhere could otherwise name any file of
/// the host, and its guest would read it. And of not too many, each of them once: one that is based on itself would have no
/// end, and each time around takes the memory of its tables again.
#[derive(Clone, Debug)]
struct SameFolder {
    folder: PathBuf,
    /// The image and what it is based on so far.
    above: Vec<PathBuf>,
}

impl SameFolder {
    /// Returns the file, without links.
    fn check(&self, path: Option<&Path>) -> io::Result<PathBuf> {
        let named = path.ok_or_else(|| io::Error::other("names a file it is based on, but no path"))?;
        let file = named.canonicalize()?;
        if file.parent() == Some(&self.folder) {
            return Ok(file);
        }
        let said =
            format!("is based on {}, outside its own folder; put both into one folder", named.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, said))
    }
}

impl ImplicitOpenGate<ImagoFile> for SameFolder {
    fn open_format<F: FormatDriverBuilder<ImagoFile>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<ImagoFile>> {
        let file = self.check(builder.get_image_path().as_deref())?;
        if self.above.contains(&file) {
            return Err(io::Error::other(format!("is based on itself, by {}", file.display())));
        }
        if self.above.len() > DISK_LAYERS_MAX {
            let said = format!(
                "is based on a row of more than {DISK_LAYERS_MAX} images; make one of them: qemu-img convert"
            );
            return Err(io::Error::other(said));
        }
        let mut below = self.clone();
        below.above.push(file);
        Ok(FormatAccess::new(builder.open(below)?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<ImagoFile> {
        self.check(options.get_filename())?;
        ImagoFile::open(options)
    }
}

/// What direct I/O on `file` asks of memory addresses and of offsets.
fn direct_alignment(file: &File) -> (usize, u32) {
    // SAFETY: a zeroed statx is a valid one for the kernel to fill; the path is an empty NUL-terminated literal,
    // and both live through the call.
    let (result, found) = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let flags = libc::AT_EMPTY_PATH;
        let result = libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, &raw mut found);
        (result, found)
    };
    let told = result == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0 && found.stx_dio_offset_align != 0;
    if !told {
        // Before Linux 6.1. A page is right for every file system and disk there is; sectors smaller than the
        // disk's own then fail, which the guest is spared by the block size it is told.
        return (4096, 512);
    }
    let memory = usize::try_from(found.stx_dio_mem_align).unwrap_or(4096);
    let block = u64::from(found.stx_dio_offset_align).clamp(SECTOR_BYTES, BLOCK_BYTES_MAX);
    (memory, u32::try_from(block).unwrap_or(512))
}
