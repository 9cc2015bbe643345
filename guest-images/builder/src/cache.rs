//! The folder in which fetched and built images live, and how files get there.

use std::env;
use std::fs;
use std::io::Write;
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
}
