//! The files of an ext2, ext3 or ext4.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;

use ext4_view::{Ext4, Ext4Error, Metadata};

use super::guard::{Allowance, Guard, needs_recovery};
use crate::disk::Slice;
use crate::limits;

/// Why a file system or a file in it cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Ext(#[from] Ext4Error),
    #[error("{0}")]
    Damaged(&'static str),
    #[error("{path} is {bytes} bytes long, {most} are read at most")]
    TooLarge { path: String, bytes: u64, most: u64 },
}

/// A file or folder, by the path that led to it after all links were followed.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) is_folder: bool,
}

/// A file system opened for reading.
#[derive(Debug)]
pub(crate) struct Files {
    ext: Ext4,
    allowance: Allowance,
}

impl Files {
    /// Replays the journal of one that was in use; a journal the crate cannot replay is left out, as by
    /// `mount -o noload`.
    pub(crate) fn open(slice: &Slice) -> Result<Self, FilesError> {
        match Self::load(slice, true) {
            Err(FilesError::Ext(e)) if needs_recovery(slice)? => {
                tracing::warn!(reason = %e, "the journal was not replayed; files may be older than the last writes");
                Self::load(slice, false)
            }
            opened => opened,
        }
    }

    fn load(slice: &Slice, journal: bool) -> Result<Self, FilesError> {
        let allowance = Rc::new(Cell::new(limits::EXT_SEARCH_BYTES));
        let guard = Guard::new(slice.clone(), Rc::clone(&allowance), journal)?;
        Ok(Self { ext: Ext4::load(Box::new(guard))?, allowance })
    }

    /// In the usual form with dashes.
    pub(crate) fn uuid(&self) -> String {
        self.ext.uuid().to_string()
    }

    pub(crate) fn label(&self) -> &str {
        self.ext.label().to_str().unwrap_or_default()
    }

    /// Follows `path` from the root. Links are followed here rather than by the crate, which would read a link's target or
    /// a folder whole before it looked at its size.
    pub(crate) fn find(&self, path: &str) -> Result<Option<Found>, FilesError> {
        let (mut ahead, mut at) = (components(path), Vec::<String>::new());
        let (mut here, mut links) = (self.ext.metadata("/")?, 0);
        for _ in 0..limits::PATH_STEPS_MAX {
            let Some(name) = ahead.pop_front() else {
                return Ok(Some(found(&at, &here)));
            };
            if !self.can_search(&here)? || name.len() > limits::NAME_BYTES_MAX || name.contains('\0') {
                return Ok(None);
            }
            if name == ".." {
                at.pop();
                here = self.ext.metadata(joined(&at).as_str())?;
                continue;
            }
            at.push(name);
            here = match self.ext.symlink_metadata(joined(&at).as_str()) {
                Ok(next) => next,
                Err(Ext4Error::NotFound) => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            if here.is_symlink() {
                links += 1;
                here = self.follow(&here, &mut at, &mut ahead)?;
            }
            if links > limits::LINKS_MAX {
                break;
            }
        }
        Err(FilesError::Damaged("a path has too many links or parts"))
    }

    fn can_search(&self, folder: &Metadata) -> Result<bool, FilesError> {
        if folder.is_dir() && folder.len() > limits::FOLDER_BYTES_MAX {
            return Err(FilesError::Damaged("a folder is larger than any in order"));
        }
        Ok(folder.is_dir())
    }

    /// Puts the target's parts before those ahead; returns what is now stood in.
    fn follow(
        &self,
        link: &Metadata,
        at: &mut Vec<String>,
        ahead: &mut VecDeque<String>,
    ) -> Result<Metadata, FilesError> {
        if link.len() > limits::PATH_BYTES_MAX as u64 {
            return Err(FilesError::Damaged("a link's target is longer than a path can be"));
        }
        let target = self.ext.read_link(joined(at).as_str())?;
        let target =
            std::str::from_utf8(target.as_ref()).map_err(|_| FilesError::Damaged("a link is not UTF-8"))?;
        at.pop();
        if target.starts_with('/') {
            at.clear();
        }
        for name in components(target).into_iter().rev() {
            ahead.push_front(name);
        }
        Ok(self.ext.metadata(joined(at).as_str())?)
    }

    /// The whole of a small file; nothing if there is none.
    pub(crate) fn read(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, FilesError> {
        let Some(found) = self.find(path)?.filter(|found| !found.is_folder) else {
            return Ok(None);
        };
        if found.bytes > most {
            return Err(FilesError::TooLarge { path: found.path, bytes: found.bytes, most });
        }
        let (mut file, mut bytes) = (self.raw(&found)?, Vec::new());
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Opens what was found, and allows what reading it takes.
    pub(crate) fn open_file(&self, found: &Found) -> Result<ExtFile, FilesError> {
        let more = found.bytes.saturating_add(limits::EXT_STREAM_SLACK_BYTES);
        self.allowance.set(self.allowance.get().saturating_add(more));
        self.raw(found)
    }

    fn raw(&self, found: &Found) -> Result<ExtFile, FilesError> {
        Ok(ExtFile { file: self.ext.open(found.path.as_str())?, failed: false })
    }

    /// Names in a folder, without `.` and `..`, unsorted; nothing if there is no such folder. Names that are not UTF-8 are
    /// left out: no boot file has one.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<String>, FilesError> {
        let Some(found) = self.find(path)?.filter(|found| found.is_folder) else {
            return Ok(Vec::new());
        };
        if found.bytes > limits::FOLDER_BYTES_MAX {
            return Err(FilesError::Damaged("a folder is larger than any in order"));
        }
        let mut names = Vec::new();
        for entry in self.ext.read_dir(found.path.as_str())?.take(limits::FOLDER_NAMES_MAX) {
            let entry = entry?;
            names.extend(
                entry.file_name().as_str().ok().filter(|n| *n != "." && *n != "..").map(str::to_owned),
            );
        }
        Ok(names)
    }
}

fn found(at: &[String], metadata: &Metadata) -> Found {
    Found { path: joined(at), bytes: metadata.len(), is_folder: metadata.is_dir() }
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect()
}

fn joined(at: &[String]) -> String {
    format!("/{}", at.join("/"))
}

/// A file's contents, block after block.
#[derive(Debug)]
pub(crate) struct ExtFile {
    file: ext4_view::File,
    /// The crate panics when it is asked again after an error.
    failed: bool,
}

impl Read for ExtFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("reading this file failed before"));
        }
        let read = self.file.read_bytes(into);
        self.failed = read.is_err();
        read.map_err(io::Error::other)
    }
}
