//! A stock Debian on a disk: systemd, Debian's kernel, a GPT with one ext4 file system, and a grub.cfg that says how it boots.
//!
//! Why it is made this way: docs/decisions/0009-disk-images.md.

mod archive;
mod configure;
mod ext4;
mod grub;
mod options;
mod recipe;
mod scrub;
mod testing;
mod tree;

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use self::archive::Archive;
use self::ext4::Identity;
pub use self::options::{CopyIn, DebianOptions, RootLogin, StaticAddress, parse_size};
use self::recipe::Recipe;
pub use self::testing::{TestImage, debian_test_image};
use self::tree::Tree;
use crate::disk::gpt::{self, Partition};
use crate::disk::{self, Format, sparse};
use crate::limits::STOP_CHECK;
use crate::tool::{DISK_TOOLS, require};
use crate::{Cache, ImageError, Observer};

/// Folder of the cache that holds disk images, each in a folder named by its key.
pub(crate) const FOLDER: &str = "disk";
/// The image in its folder; the folder has its name only when the image is whole.
pub(crate) const RAW: &str = "disk.raw";
const QCOW2: &str = "disk.qcow2";
/// Folders of builds that go on, or were killed.
pub(crate) const UNFINISHED: &str = ".build-";
/// Where the boot loader's partition starts: its place in Debian's own cloud images, as is its number.
const BOOT_START: u64 = 1 << 20;
const ROOT_START: u64 = 2 << 20;
/// Kept free behind the root partition, for the table's copy.
const TAIL: u64 = 1 << 20;

/// A built image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImage {
    /// Hash of all that went into it.
    pub key: String,
    /// Whether it was there already.
    pub cached: bool,
    folder: PathBuf,
}

impl DiskImage {
    /// The image in `format`; made from the raw one the first time it is asked for. Not to be written to.
    ///
    /// # Errors
    /// As [`disk::convert`].
    pub fn file(&self, format: Format, observer: &dyn Observer) -> Result<PathBuf, ImageError> {
        let raw = self.folder.join(RAW);
        if format == Format::Raw {
            return Ok(raw);
        }
        let qcow2 = self.folder.join(QCOW2);
        if !qcow2.is_file() {
            observer.step("packing the disk as qcow2");
            disk::convert(&raw, &qcow2, Format::Qcow2, observer)?;
        }
        Ok(qcow2)
    }
}

/// The image for `options`: from the cache if it was built from the same inputs before and `rebuild` is not set.
///
/// # Errors
/// [`ImageError::Missing`] and [`ImageError::NotRoot`] for what the machine lacks, [`ImageError::Option`] for what cannot be
/// built, [`ImageError::Command`] for a step that failed, [`ImageError::Interrupted`] once `observer` wants no more.
pub fn debian_image(
    cache: &Cache,
    options: &DebianOptions,
    rebuild: bool,
    observer: &dyn Observer,
) -> Result<DiskImage, ImageError> {
    options.check()?;
    require(DISK_TOOLS)?;
    let disks = cache.subfolder(FOLDER)?;
    let _alone = lock(&disks, observer)?;
    observer.step("asking apt which packages there are");
    let archive = Archive::resolve(cache, options, observer)?;
    let recipe = Recipe::gather(options, &archive)?;
    let image = |cached| DiskImage { key: recipe.key.clone(), cached, folder: disks.join(&recipe.key) };
    if !rebuild && image(true).folder.join(RAW).is_file() {
        return Ok(image(true));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot("building a Debian image"));
    }
    remove_leftovers(&disks)?;
    let work = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&disks);
    let work = work.map_err(ImageError::file("write into", &disks))?;
    let finished = build(&recipe, work.path(), observer)?;
    put(&finished, &image(false).folder)?;
    Ok(image(false))
}

/// Builds in `work`; returns the folder with the finished image.
fn build(recipe: &Recipe<'_>, work: &Path, observer: &dyn Observer) -> Result<PathBuf, ImageError> {
    let tree = Tree::install(work, recipe, &configure::early(recipe), observer)?;
    check_packages(&tree, recipe)?;
    observer.step("configuring the system");
    configure::configure(&tree, recipe, observer)?;
    for copy in &recipe.options.copies {
        tree.copy_in(copy)?;
    }
    for command in &recipe.options.commands {
        observer.step(&format!("running {command}"));
        tree.run(command, None, observer)?;
    }
    scrub::scrub(&tree)?;
    let bytes = recipe.options.size - ROOT_START - TAIL;
    let identity = Identity { uuid: recipe.root_uuid(), bytes, date: tree.date() };
    observer.step("making the boot menu");
    grub::configure(&tree, work, &identity, observer)?;
    observer.step("writing the disk");
    let root = work.join("root.ext4");
    ext4::write(tree.root(), &root, &identity, observer)?;
    let finished = work.join("finished");
    fs::create_dir(&finished).map_err(ImageError::file("create", &finished))?;
    assemble(&root, &finished.join(RAW), recipe, observer)?;
    Ok(finished)
}

/// The key says which packages are in the image: true only if the archive did not change meanwhile.
fn check_packages(tree: &Tree, recipe: &Recipe<'_>) -> Result<(), ImageError> {
    let installed = tree.packages()?;
    let expected = &recipe.archive.packages;
    let differs = |(name, version): &(&String, &String)| expected.get(*name) != Some(*version);
    match installed.iter().find(differs) {
        None => Ok(()),
        Some((name, version)) => {
            let asked = expected.get(name).map_or("no such package", String::as_str);
            let reason = format!("{name} {version} was installed where apt had said {asked} before");
            Err(ImageError::unusable(
                "Debian's archive",
                reason,
                "it may just have been updated: build again",
            ))
        }
    }
}

/// Partition table, an empty partition for a boot loader, and the root file system.
fn assemble(
    root: &Path,
    target: &Path,
    recipe: &Recipe<'_>,
    observer: &dyn Observer,
) -> Result<(), ImageError> {
    let size = recipe.options.size;
    let partition = |number, kind, name: &str, start, bytes| Partition {
        number,
        kind,
        id: recipe.id(name),
        start,
        bytes,
        name: name.to_owned(),
    };
    let partitions = [
        partition(1, gpt::LINUX, "root", ROOT_START, size - ROOT_START - TAIL),
        partition(14, gpt::BIOS_BOOT, "bios", BOOT_START, ROOT_START - BOOT_START),
    ];
    let file = File::create(target).map_err(ImageError::file("create", target))?;
    file.set_len(size).map_err(ImageError::file("write", target))?;
    for (at, content) in gpt::table(size, recipe.id("disk"), &partitions) {
        file.write_all_at(&content, at).map_err(ImageError::file("write", target))?;
    }
    sparse::copy_into(root, &file, ROOT_START, observer)
}

/// One build at a time: the second may find what it wants when the first has ended.
fn lock(disks: &Path, observer: &dyn Observer) -> Result<File, ImageError> {
    let path = disks.join(".lock");
    let file = File::create(&path).map_err(ImageError::file("create", &path))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(ImageError::file("lock", path)(error)),
            Err(TryLockError::WouldBlock) if observer.stopped() => return Err(ImageError::Interrupted),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut told, true) {
                    observer.step("waiting for another build to end");
                }
                std::thread::sleep(STOP_CHECK);
            }
        }
    }
}

/// What a killed build left. Its mounts and processes went with it, so these are plain files.
fn remove_leftovers(disks: &Path) -> Result<(), ImageError> {
    let entries = fs::read_dir(disks).map_err(ImageError::file("list", disks))?;
    let unfinished =
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED));
    for entry in unfinished {
        fs::remove_dir_all(entry.path()).map_err(ImageError::file("remove", entry.path()))?;
    }
    Ok(())
}

fn put(finished: &Path, folder: &Path) -> Result<(), ImageError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(ImageError::file("replace", folder))?;
    }
    fs::rename(finished, folder).map_err(ImageError::file("move the finished image to", folder))
}
