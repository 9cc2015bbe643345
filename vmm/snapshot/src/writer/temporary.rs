//! The file a snapshot is written to until it is whole: beside its final place, under another name.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};

const SUFFIX: &str = ".partial";

/// Tells apart what one process writes at the same time.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A locked file with a name of its own; removed when dropped, unless it was put into place.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    path: PathBuf,
    target: PathBuf,
    folder: PathBuf,
    placed: bool,
}

impl Temporary {
    /// Makes one for `target`. Only its owner may read it: it will hold the memory of a guest.
    pub(super) fn beside(target: &Path, name: &str) -> io::Result<Temporary> {
        let folder = match target.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let prefix = format!(".{name}.");
        remove_leftovers(&folder, &prefix);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{prefix}{}-{number}{SUFFIX}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let temporary = Temporary { file, path, target: target.to_owned(), folder, placed: false };
        flock(&temporary.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(temporary)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes it durable and gives it the final name, in place of a file that has it now.
    pub(super) fn place(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        // Opened first: after the rename nothing may fail that could have failed before.
        let folder = File::open(&self.folder)?;
        fs::rename(&self.path, &self.target)?;
        self.placed = true;
        folder.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished snapshot could not be removed");
        }
    }
}

/// Removes what a crash left. A file whose writer lives is locked and stays. Best effort: nothing depends on it but room.
fn remove_leftovers(folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let ours =
        |name: OsString| name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(SUFFIX));
    for path in entries.flatten().filter(|entry| ours(entry.file_name())).map(|entry| entry.path()) {
        let abandoned = File::open(&path)
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if abandoned && fs::remove_file(&path).is_ok() {
            tracing::info!(path = %path.display(), "removed an unfinished snapshot of a process that is gone");
        }
    }
}
