//! The folder in which fetched and built images live, and how files get there.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::ImageError;

/// SHA-256 in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sha256Hex(pub(crate) String);

impl Sha256Hex {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The cache folder: `$MYCELIUM_CACHE`, else `mycelium` in the user's cache folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the cache, creating its folder.
    ///
    /// # Errors
    /// [`ImageError::File`] when the folder cannot be created.
    pub fn open() -> Result<Self, ImageError> {
        Self::at(default_folder())
    }

    /// Opens a cache elsewhere.
    ///
    /// # Errors
    /// [`ImageError::File`] when the folder cannot be created.
    pub fn at(folder: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(ImageError::file("create the cache folder", &folder))?;
        Ok(Self { folder })
    }

    /// A folder of the cache, created when absent.
    pub(crate) fn subfolder(&self, name: &str) -> Result<PathBuf, ImageError> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
        Ok(folder)
    }

    /// A file named after its content, written unless it is there already.
    pub(crate) fn store(&self, kind: &str, extension: &str, bytes: &[u8]) -> Result<PathBuf, ImageError> {
        let Sha256Hex(hash) = Sha256Hex::of(bytes);
        let path = self.subfolder(kind)?.join(format!("{hash}.{extension}"));
        // Files appear whole under their final name, so one of the right length is the right one.
        let present = fs::metadata(&path).is_ok_and(|found| found.len() == bytes.len() as u64);
        if !present {
            write_atomically(&path, bytes)?;
        }
        Ok(path)
    }

    /// What the cache keeps, by kind and name.
    ///
    /// # Errors
    /// [`ImageError::File`] when a folder cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, ImageError> {
        let mut entries = Vec::new();
        for kind in KINDS {
            let folder = self.subfolder(kind)?;
            let listed = fs::read_dir(&folder).map_err(ImageError::file("list", &folder))?;
            // A dot begins what is unfinished, and locks.
            let whole =
                listed.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
            for path in whole.map(|entry| entry.path()) {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                // A version's dots are no ending.
                let name = if path.is_dir() { file_name(&path) } else { name };
                let bytes = allocated(&path).map_err(ImageError::file("read", &path))?;
                entries.push(Entry { name, kind: kind.to_owned(), bytes, path });
            }
        }
        entries.sort();
        Ok(entries)
    }

    /// Removes one entry. It is built or fetched again when it is needed.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be removed.
    pub fn remove(&self, entry: &Entry) -> Result<(), ImageError> {
        let removed =
            if entry.path.is_dir() { fs::remove_dir_all(&entry.path) } else { fs::remove_file(&entry.path) };
        removed.map_err(ImageError::file("remove", &entry.path))
    }
}

/// Folders of the cache: Debian disks, initramfs archives, kernels, and apt's lists of releases.
const KINDS: [&str; 4] = ["disk", "guest", "kernel", "apt"];

/// Something the cache keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Entry {
    /// `disk`, `guest`, `kernel` or `apt`.
    pub kind: String,
    /// Its name, unlike all others of its kind.
    pub name: String,
    /// Bytes it takes.
    pub bytes: u64,
    /// Its file or folder.
    pub path: PathBuf,
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn allocated(path: &Path) -> std::io::Result<u64> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_dir() {
        return Ok(metadata.blocks() * 512);
    }
    fs::read_dir(path)?.map(|entry| allocated(&entry?.path())).sum()
}

/// Writes beside the destination and renames: readers see the old file or the new one, whole.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut staged =
        tempfile::NamedTempFile::new_in(folder).map_err(ImageError::file("write into", folder))?;
    staged.write_all(bytes).map_err(ImageError::file("write", path))?;
    staged.persist(path).map_err(|error| ImageError::file("write", path)(error.error))?;
    Ok(())
}

fn default_folder() -> PathBuf {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("MYCELIUM_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|folder| folder.join("mycelium")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/mycelium")))
        .unwrap_or_else(|| env::temp_dir().join("mycelium-cache"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_file_is_found_again_and_a_cut_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let path = cache.store("guest", "cpio", b"content").unwrap();
        fs::write(&path, b"cut").unwrap();
        assert_eq!(cache.store("guest", "cpio", b"content").unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"content");
    }

    #[test]
    fn what_is_kept_is_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        cache.store("guest", "cpio", b"content").unwrap();
        let disk = cache.subfolder("disk").unwrap().join("1.2-3");
        fs::create_dir(&disk).unwrap();
        fs::write(disk.join("disk.raw"), "disk").unwrap();
        fs::write(folder.path().join("disk/.lock"), "").unwrap();
        let entries = cache.entries().unwrap();
        let names: Vec<_> = entries.iter().map(|entry| (entry.kind.as_str(), entry.name.len())).collect();
        assert_eq!(names, [("disk", 5), ("guest", 64)]);
        entries.iter().for_each(|entry| cache.remove(entry).unwrap());
        assert_eq!(cache.entries().unwrap(), []);
    }
}
