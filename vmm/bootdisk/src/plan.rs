//! From an entry to files that can be read.

use std::io::{self, Read};

use crate::error::BootDiskError;
use crate::fs::{ExtFile, Found};
use crate::limits;
use crate::menu::{Boot, Item, Menu, Place, choose};
use crate::volume::Volumes;

/// What a disk boots.
///
/// Not `Send`: its files share the reader of their file system. Read them in the thread that found them.
#[derive(Debug)]
pub struct BootPlan {
    /// The kernel image, as it lies on the disk.
    pub kernel: BootFile,
    /// To be handed over one after the other.
    pub initrds: Vec<BootFile>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The entry's title, after those of the submenus it is in, joined by `>`.
    pub title: String,
    /// Where the entry stands: "partition 1 (ext4): /boot/grub/grub.cfg".
    pub source: String,
    /// Titles of all entries; the position in this list chooses an entry too.
    pub entries: Vec<String>,
}

/// A file of the disk, read from its begin to its end.
#[derive(Debug)]
pub struct BootFile {
    /// Its path in its file system, links followed.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    file: ExtFile,
}

impl Read for BootFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.file.read(into)
    }
}

/// Chooses an entry and opens what it names. `origin` is where the menu stands.
pub(crate) fn plan(
    volumes: &Volumes,
    menu: &dyn Menu,
    origin: String,
    wanted: Option<&str>,
) -> Result<BootPlan, BootDiskError> {
    let entries: Vec<_> = menu.items().iter().map(|item| item.title.clone()).collect();
    let index = match wanted {
        None => menu.default_index(),
        Some(wanted) => choose(menu.items(), wanted).ok_or_else(|| BootDiskError::UnknownEntry {
            origin: origin.clone(),
            wanted: wanted.to_owned(),
            entries: entries.clone(),
        })?,
    };
    let title = menu.items().get(index).map_or_else(String::new, |item: &Item| item.title.clone());
    let boot = menu.boot(index);
    let boot = boot.map_err(|e| BootDiskError::Config { origin: origin.clone(), reason: e.to_string() })?;
    Chosen { volumes, origin, title, entries }.open(boot)
}

struct Chosen<'a> {
    volumes: &'a Volumes,
    origin: String,
    title: String,
    entries: Vec<String>,
}

impl Chosen<'_> {
    fn open(self, boot: Boot) -> Result<BootPlan, BootDiskError> {
        let Some(kernel) = &boot.kernel else {
            let Self { origin, title, entries, .. } = self;
            return Err(BootDiskError::NoKernel { origin, title, entries });
        };
        let kernel = self.file(kernel, limits::KERNEL_BYTES_MAX)?;
        let initrds = boot.initrds.iter().map(|place| self.file(place, limits::INITRD_BYTES_MAX));
        let initrds = initrds.collect::<Result<_, _>>()?;
        let Self { origin: source, title, entries, .. } = self;
        Ok(BootPlan { kernel, initrds, cmdline: boot.cmdline, title, source, entries })
    }

    fn file(&self, place: &Place, most: u64) -> Result<BootFile, BootDiskError> {
        let Some(volume) = place.volume else {
            return Err(self.missing(place, "is on a device this disk does not have".to_owned()));
        };
        let Some(files) = self.volumes.files(volume) else {
            let volume = self.volumes.0.get(volume).map_or_else(String::new, ToString::to_string);
            return Err(self.missing(place, format!("is on {volume}, which cannot be read here")));
        };
        for path in spellings(&place.path) {
            match files.find(&path) {
                Ok(Some(Found { is_folder: true, .. }) | None) => {}
                Ok(Some(found)) if found.bytes > most => return Err(self.too_large(&found, most)),
                Ok(Some(found)) => match files.open_file(&found) {
                    Ok(file) => return Ok(BootFile { path: found.path, bytes: found.bytes, file }),
                    Err(e) => return Err(self.missing(place, format!("cannot be opened: {e}"))),
                },
                Err(e) => return Err(self.missing(place, format!("cannot be looked for: {e}"))),
            }
        }
        Err(self.missing(place, "does not exist".to_owned()))
    }

    fn missing(&self, place: &Place, reason: String) -> BootDiskError {
        let device = if place.device.is_empty() { String::new() } else { format!("({})", place.device) };
        BootDiskError::Missing {
            origin: self.origin.clone(),
            title: self.title.clone(),
            file: format!("{device}{}", place.path),
            reason,
            entries: self.entries.clone(),
        }
    }

    fn too_large(&self, found: &Found, most: u64) -> BootDiskError {
        BootDiskError::TooLarge {
            title: self.title.clone(),
            file: found.path.clone(),
            bytes: found.bytes,
            most,
        }
    }
}

/// A `/boot` that is a partition of its own lacks the prefix, and entries may be written for either.
fn spellings(path: &str) -> [String; 2] {
    let other = match path.strip_prefix("/boot/") {
        Some(rest) => format!("/{rest}"),
        None => format!("/boot{path}"),
    };
    [path.to_owned(), other]
}
