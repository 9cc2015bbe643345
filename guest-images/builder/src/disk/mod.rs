//! Files that hold disks: their formats, what is on them, and the way from one format to the other.

pub mod gpt;
mod inspect;
mod qcow2;
pub(crate) mod sparse;

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::str::FromStr;

pub use inspect::{Inspection, PartitionInfo, inspect};
use serde::Serialize;

use crate::{ImageError, Observer};

/// How a file holds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte, with holes where nothing is.
    Raw,
    /// QEMU's format, version 3.
    Qcow2,
}

impl Format {
    /// The format of an existing file, by its first bytes.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be read.
    pub fn of(path: &Path) -> Result<Self, ImageError> {
        use std::io::Read;
        let mut magic = Vec::new();
        let file = File::open(path).map_err(ImageError::file("read", path))?;
        file.take(4).read_to_end(&mut magic).map_err(ImageError::file("read", path))?;
        Ok(if magic == b"QFI\xfb" { Self::Qcow2 } else { Self::Raw })
    }

    /// The format that a file's name asks for: qcow2 by its ending, else raw.
    pub fn named_by(path: &Path) -> Self {
        if path.extension().is_some_and(|ending| ending == "qcow2") { Self::Qcow2 } else { Self::Raw }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err("the formats are raw and qcow2".to_owned()),
        }
    }
}

/// Copies the disk in `source` to `target` in the wanted format. `target` appears whole or not at all, replacing what was
/// there.
///
/// # Errors
/// [`ImageError::File`] and [`ImageError::Unusable`] for files that cannot be read or written; [`ImageError::Interrupted`].
pub fn convert(
    source: &Path,
    target: &Path,
    format: Format,
    observer: &dyn Observer,
) -> Result<(), ImageError> {
    place(target, |staged, folder| match (Format::of(source)?, format) {
        (Format::Raw, Format::Raw) => copy_raw(source, staged.as_file(), observer),
        (Format::Raw, Format::Qcow2) => qcow2::from_raw(source, staged.path(), observer),
        (Format::Qcow2, Format::Raw) => qcow2::to_raw(source, staged.as_file(), observer),
        (Format::Qcow2, Format::Qcow2) => repack(source, staged.path(), folder, observer),
    })
}

/// Copies an image as it is; holes stay holes. `target` appears whole or not at all, replacing what was there.
///
/// # Errors
/// As [`convert`].
pub fn copy(source: &Path, target: &Path, observer: &dyn Observer) -> Result<(), ImageError> {
    place(target, |staged, _| copy_raw(source, staged.as_file(), observer))
}

fn place(
    target: &Path,
    fill: impl FnOnce(&tempfile::NamedTempFile, &Path) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = tempfile::NamedTempFile::new_in(folder).map_err(ImageError::file("write into", folder))?;
    fill(&staged, folder)?;
    readable_by_all(staged.path())?;
    staged.persist(target).map_err(|error| ImageError::file("write", target)(error.error))?;
    Ok(())
}

fn copy_raw(source: &Path, target: &File, observer: &dyn Observer) -> Result<(), ImageError> {
    let size = fs::metadata(source).map_err(ImageError::file("read", source))?.len();
    target.set_len(size).map_err(ImageError::file("write a copy of", source))?;
    sparse::copy_into(source, target, 0, observer)
}

/// Through a raw file, which leaves out what the source no longer uses.
fn repack(source: &Path, target: &Path, folder: &Path, observer: &dyn Observer) -> Result<(), ImageError> {
    let raw = tempfile::NamedTempFile::new_in(folder).map_err(ImageError::file("write into", folder))?;
    qcow2::to_raw(source, raw.as_file(), observer)?;
    qcow2::from_raw(raw.path(), target, observer)
}

/// Temporary files are private; images are for whoever runs VMs.
fn readable_by_all(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(ImageError::file("write", path))
}
