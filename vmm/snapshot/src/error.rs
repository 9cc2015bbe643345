//! Why a snapshot cannot be written or used.

use std::io;
use std::path::PathBuf;

use crate::format::FORMAT_VERSION;

/// Why a snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be opened or read.
    #[error("cannot read {part} of {path}: {source}; check that the file is there and the disk is sound")]
    Read {
        /// The file.
        path: PathBuf,
        /// What was being read.
        part: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a snapshot: it does not begin with the magic; name a file written by `save`")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another build wrote it in another format.
    #[error(
        "{path} has snapshot format {found}, written by \"{writer}\"; this build reads format {FORMAT_VERSION}: \
         restore it with the build that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The build that wrote it, in its own words.
        writer: String,
    },
    /// It has no end.
    #[error("{path} is not whole: {reason}; saving or copying it was interrupted, save or copy it again")]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// How that is known.
        reason: String,
    },
    /// It is a snapshot and changed since it was written.
    #[error("{path} is damaged: {part}: {reason}; nothing of it can be trusted, take another copy")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The part.
        part: &'static str,
        /// How that is known.
        reason: String,
    },
    /// A page outside the RAM of the snapshot was asked for.
    #[error("page {page} is outside the snapshot {path}, which has {pages} pages; compare the RAM sizes")]
    NoSuchPage {
        /// The file.
        path: PathBuf,
        /// The page asked for.
        page: u64,
        /// How many there are.
        pages: u64,
    },
    /// The memory to restore into refused a page.
    #[error("cannot put page {page} of {path} into memory: {source}; compare the RAM sizes")]
    Memory {
        /// The file.
        path: PathBuf,
        /// The first of the pages refused.
        page: u64,
        /// The reason given.
        source: io::Error,
    },
}

/// Why a snapshot was not saved. A snapshot that had the name before is untouched and nothing of the new one is left.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The path names no file.
    #[error("{path} does not name a file; give the snapshot a name in an existing folder")]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// The disk is full, or a quota or limit is reached.
    #[error(
        "no room for {part} of {path}: the snapshot needs at most {needed} bytes and {free} are free there ({source}); \
         free that much or save to another disk"
    )]
    Room {
        /// The snapshot.
        path: PathBuf,
        /// What was being written.
        part: &'static str,
        /// Bytes of the whole snapshot, an upper bound: pages not looked at yet may turn out to be zero, and are not stored.
        needed: u64,
        /// Bytes free for this process on that disk, with what was written of this snapshot removed. Quotas and limits may
        /// allow less.
        free: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else went wrong.
    #[error("cannot write {part} of {path}: {source}; check that the folder is there and may be written to")]
    Write {
        /// The snapshot.
        path: PathBuf,
        /// What was being written.
        part: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Guest memory could not be read.
    #[error("cannot read page {page} of guest memory to save it to {path}: {source}; the VM is not saved")]
    Memory {
        /// The snapshot.
        path: PathBuf,
        /// The first of the pages wanted.
        page: u64,
        /// The reason given.
        source: io::Error,
    },
    /// A part is larger than any machine has, empty RAM included.
    #[error("{part} has {size} {unit}, a snapshot may have 1 to {max}; {path} is not saved")]
    Size {
        /// The snapshot.
        path: PathBuf,
        /// The part.
        part: &'static str,
        /// Its size.
        size: u64,
        /// What it is counted in.
        unit: &'static str,
        /// The limit.
        max: u64,
    },
    /// Parts come as metadata, state, pages, then commit: the caller is wrong.
    #[error("{part} given out of turn; a snapshot takes metadata, state, pages, commit, each once ({path})")]
    Order {
        /// The snapshot.
        path: PathBuf,
        /// The part.
        part: &'static str,
    },
}
