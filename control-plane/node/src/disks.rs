//! Writable disks of VMs that have replicas: each node has an image of its own.
//!
//! ```text
//!   active's node:  spec ──> what disks there are (serial, bytes) ──> asks
//!   replica's node: the image this node had of the same VM, else disks/disk0.raw in the VM's folder ──> spec of its own
//! ```
//! No path that another node names is ever written to.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use endophyte_vmm::devices::block::{DiskImage, ImageError};
use endophyte_vmm::spec::{DiskFormat, DiskSpec, VmSpec};
use serde::{Deserialize, Serialize};

use crate::entry::VmFolder;
use crate::limits;

/// Bytes of a sector, the unit of a disk's size.
const SECTOR_BYTES: u64 = 512;
/// Digits of a VM's mark.
const MARK_DIGITS: usize = 32;

/// Tells a VM from every other one, those of its name among them. Made when it is first started, and handed from node to node: an
/// image is given to a replica of the same VM only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Mark(String);

impl Mark {
    pub(crate) fn new() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    fn is_sound(&self) -> bool {
        self.0.len() == MARK_DIGITS && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// A writable disk, as the active's node describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskAsked {
    /// As in the spec.
    pub(crate) serial: String,
    pub(crate) bytes: u64,
}

/// Why a node cannot hold the disks of a replica.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("what is said of the VM's disks is wrong: {0}; run the same release on both nodes")]
    Asked(String),
    #[error(
        "disk {serial} has {bytes} bytes, and a replica's disk {} to {} in whole sectors; leave it out of the VM, or run it without --protect",
        SECTOR_BYTES,
        limits::DISK_BYTES
    )]
    Size { serial: String, bytes: u64 },
    #[error(
        "this node's image of disk {serial}, {}, {why}; a replica's disk is an image file of {bytes} bytes: make it one, or move \
         it away, and this node makes one of its own",
        path.display()
    )]
    Unlike { serial: String, path: PathBuf, why: String, bytes: u64 },
    #[error(
        "not enough room in {} for the disks of VM {vm}: {} MiB are needed, {} MiB are free and not promised to other images; free \
         some, or start the daemon with its --dir on a larger file system",
        folder.display(), need >> 20, free >> 20
    )]
    NoRoom { vm: String, folder: PathBuf, need: u64, free: u64 },
    #[error(
        "this node keeps disks of another VM that was called {vm}, in {}; move them away or discard them, on this node: mycelium vm rm \
         {vm} --discard-disks",
        folder.display()
    )]
    Others { vm: String, folder: PathBuf },
    #[error("cannot make {}: {source}; check that the folder is there and can be written to", path.display())]
    Make { path: PathBuf, source: io::Error },
}

/// The writable disks of a VM, in the order of its spec.
fn writable(spec: &VmSpec) -> impl Iterator<Item = (usize, &DiskSpec)> {
    spec.devices.disks.iter().enumerate().filter(|(_, disk)| !disk.readonly)
}

/// Whether a replica of it needs images.
pub(crate) fn are_written(spec: &VmSpec) -> bool {
    writable(spec).next().is_some()
}

/// What a replica of a VM on this node needs.
pub(crate) fn ask_for(spec: &VmSpec) -> Result<Vec<DiskAsked>, DiskError> {
    let asked = |(_, disk): (usize, &DiskSpec)| {
        Ok(DiskAsked { serial: disk.serial.clone(), bytes: DiskImage::bytes_of(disk)? })
    };
    writable(spec).map(asked).collect()
}

/// A replica that is to be held here.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// As the active's node has it.
    pub(crate) text: &'a str,
    pub(crate) spec: &'a VmSpec,
    pub(crate) disks: &'a [DiskAsked],
    pub(crate) mark: &'a Mark,
}

/// What this node had of a VM of that name before.
#[derive(Debug)]
pub(crate) struct Earlier<'a> {
    pub(crate) mark: &'a Mark,
    pub(crate) spec: Option<VmSpec>,
}

/// Where this node has a disk, or will have it.
#[derive(Debug)]
struct Place {
    /// Number among the spec's disks.
    number: usize,
    path: PathBuf,
    format: DiskFormat,
    /// Bytes of an image that is to be made.
    make: Option<u64>,
}

/// Makes the images that are missing; returns the spec for this node.
pub(crate) fn for_replica(
    wanted: &Wanted<'_>,
    folder: &VmFolder,
    earlier: Option<&Earlier<'_>>,
) -> Result<String, DiskError> {
    check(wanted)?;
    let same = earlier.filter(|earlier| earlier.mark == wanted.mark && wanted.mark.is_sound());
    if same.is_none() && !kept_in(folder).is_empty() {
        return Err(DiskError::Others { vm: wanted.spec.name.clone(), folder: folder.disks() });
    }
    let had = same.and_then(|earlier| earlier.spec.as_ref());
    let places = writable(wanted.spec).zip(wanted.disks);
    let places: Vec<Place> =
        places.map(|((number, _), disk)| place(number, disk, folder, had)).collect::<Result<_, _>>()?;
    make(wanted, folder, &places)?;
    respecify(wanted.text, &places)
}

fn check(wanted: &Wanted<'_>) -> Result<(), DiskError> {
    let serials = writable(wanted.spec).map(|(_, disk)| disk.serial.as_str());
    if !serials.eq(wanted.disks.iter().map(|disk| disk.serial.as_str())) {
        return Err(DiskError::Asked("they are not those of its spec".to_owned()));
    }
    if !wanted.mark.is_sound() {
        return Err(DiskError::Asked("the VM's mark is none".to_owned()));
    }
    let sound = |disk: &&DiskAsked| {
        (SECTOR_BYTES..=limits::DISK_BYTES).contains(&disk.bytes) && disk.bytes.is_multiple_of(SECTOR_BYTES)
    };
    match wanted.disks.iter().find(|disk| !sound(disk)) {
        Some(DiskAsked { serial, bytes }) => Err(DiskError::Size { serial: serial.clone(), bytes: *bytes }),
        None => Ok(()),
    }
}

/// The image this node had of the disk, if it had one; else one of the folder's.
fn place(
    number: usize,
    disk: &DiskAsked,
    folder: &VmFolder,
    had: Option<&VmSpec>,
) -> Result<Place, DiskError> {
    let own = folder.disks().join(format!("disk{number}.raw"));
    let had = had.and_then(|spec| writable(spec).find(|(_, had)| had.serial == disk.serial));
    let (path, format) =
        had.map_or((own.clone(), DiskFormat::Raw), |(_, had)| (had.path.clone(), had.format));
    let found = match fs::metadata(&path) {
        // Empty: whoever was making it did not come to the end.
        Ok(found) if path != own || found.len() > 0 => found,
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(DiskError::Make { path, source });
        }
        _ => return Ok(Place { number, path: own, format: DiskFormat::Raw, make: Some(disk.bytes) }),
    };
    let why = match had.map_or(Ok(found.len()), |(_, had)| DiskImage::bytes_of(had))? {
        _ if !found.is_file() => "is no file, so that there is no place beside it for a journal".to_owned(),
        bytes if bytes != disk.bytes => format!("has {bytes} bytes"),
        _ => return Ok(Place { number, path, format, make: None }),
    };
    Err(DiskError::Unlike { serial: disk.serial.clone(), path, why, bytes: disk.bytes })
}

/// Makes what is to be made, all or nothing. The files are sparse, and there is room for them to be filled.
fn make(wanted: &Wanted<'_>, folder: &VmFolder, places: &[Place]) -> Result<(), DiskError> {
    let missing: Vec<(&Path, u64)> =
        places.iter().filter_map(|place| Some((place.path.as_path(), place.make?))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let disks = folder.disks();
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| DiskError::Make { path, source }
    };
    fs::create_dir_all(&disks).map_err(failed(&disks))?;
    let need = missing.iter().map(|(_, bytes)| bytes).sum();
    let free = room_in(folder).map_err(failed(&disks))?;
    if free < need {
        // If they are empty.
        let _ = fs::remove_dir(&disks).and_then(|()| fs::remove_dir(folder.path()));
        return Err(DiskError::NoRoom { vm: wanted.spec.name.clone(), folder: disks, need, free });
    }
    for (path, bytes) in &missing {
        if let Err(source) = make_image(path, *bytes) {
            missing.iter().for_each(|(path, _)| drop(fs::remove_file(path)));
            return Err(failed(path)(source));
        }
    }
    Ok(())
}

fn make_image(path: &Path, bytes: u64) -> io::Result<()> {
    let mut options = File::options();
    options.create(true).write(true).truncate(true).mode(0o600).open(path)?.set_len(bytes)
}

/// Bytes that are free for images, without those that images of this daemon may still grow by.
fn room_in(folder: &VmFolder) -> io::Result<u64> {
    let there = rustix::fs::statvfs(folder.disks())?;
    let images = folder
        .siblings()
        .into_iter()
        .flat_map(|folder| kept_in(&folder))
        .filter_map(|image| fs::metadata(image).ok());
    let promised: u64 = images.map(|image| image.len().saturating_sub(image.blocks() * SECTOR_BYTES)).sum();
    Ok((there.f_bavail * there.f_frsize).saturating_sub(promised))
}

/// The images in a VM's folder.
pub(crate) fn kept_in(folder: &VmFolder) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder.disks()).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "raw")).collect()
}

/// The spec with the disks where this node has them.
fn respecify(text: &str, places: &[Place]) -> Result<String, DiskError> {
    let wrong = |what: String| DiskError::Asked(format!("its spec cannot be changed: {what}"));
    let mut spec: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let disks = spec.get_mut("disk").and_then(toml::Value::as_array_mut);
    let disks = disks.ok_or_else(|| wrong("it has no disks".to_owned()))?;
    for place in places {
        let path = place.path.to_str().ok_or_else(|| wrong(format!("{:?} is no text", place.path)))?;
        let disk = disks.get_mut(place.number).and_then(toml::Value::as_table_mut);
        let disk = disk.ok_or_else(|| wrong(format!("it has no disk {}", place.number)))?;
        let format = match place.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        disk.insert("path".to_owned(), path.into());
        disk.insert("format".to_owned(), format.into());
    }
    toml::to_string(&spec).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A daemon's folder, and a VM of another node.
    struct Desk {
        dir: tempfile::TempDir,
        text: String,
        disks: Vec<DiskAsked>,
        mark: Mark,
    }

    impl Desk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let text = "name = \"a\"\nram_mib = 64\n\n[[disk]]\npath = \"/srv/base\"\nreadonly = true\n\n\
                 [[disk]]\npath = \"/srv/data.qcow2\"\nserial = \"data\"\n"
                .to_owned();
            let disks = vec![DiskAsked { serial: "data".to_owned(), bytes: 3 * MIB }];
            Self { dir, text, disks, mark: Mark::new() }
        }

        fn folder(&self) -> VmFolder {
            VmFolder::of(self.dir.path(), "a")
        }

        fn parse(&self, text: &str) -> VmSpec {
            VmSpec::parse(text, Path::new("/vm.toml")).unwrap()
        }

        fn ask(&self, earlier: Option<&Earlier<'_>>) -> Result<VmSpec, DiskError> {
            let spec = self.parse(&self.text);
            let wanted = Wanted { text: &self.text, spec: &spec, disks: &self.disks, mark: &self.mark };
            for_replica(&wanted, &self.folder(), earlier).map(|text| self.parse(&text))
        }
    }

    #[test]
    fn a_replica_gets_an_image_of_its_own_and_no_path_of_anybody_else() {
        let desk = Desk::new();
        let spec = desk.ask(None).unwrap();
        let [base, data] = &spec.devices.disks[..] else { panic!() };
        assert_eq!(base.path, Path::new("/srv/base"));
        assert!(data.path.starts_with(desk.dir.path()) && data.format == DiskFormat::Raw, "{data:?}");
        let made = fs::metadata(&data.path).unwrap();
        assert_eq!(made.len(), 3 * MIB);
        assert!(made.blocks() * SECTOR_BYTES < MIB, "it is sparse");

        // The same VM again: what is there is used, with what it holds.
        fs::write(&data.path, vec![7; 3 << 20]).unwrap();
        let earlier = Earlier { mark: &desk.mark, spec: Some(spec.clone()) };
        assert_eq!(desk.ask(Some(&earlier)).unwrap().devices.disks[1].path, data.path);
        let lost_spec = Earlier { mark: &desk.mark, spec: None };
        assert_eq!(desk.ask(Some(&lost_spec)).unwrap().devices.disks[1].path, data.path);
        assert_eq!(fs::read(&data.path).unwrap()[5], 7);
    }

    #[test]
    fn a_node_that_ran_the_vm_gives_its_image_to_the_same_vm_only() {
        let desk = Desk::new();
        let image = desk.dir.path().join("mine.img");
        File::create(&image).unwrap().set_len(3 * MIB).unwrap();
        let text = desk.text.replace("/srv/data.qcow2", &image.display().to_string());
        let spec = Some(desk.parse(&text));
        let had = Earlier { mark: &desk.mark, spec: spec.clone() };
        assert_eq!(desk.ask(Some(&had)).unwrap().devices.disks[1].path, image);
        assert!(kept_in(&desk.folder()).is_empty());

        let other = Earlier { mark: &Mark::new(), spec: spec.clone() };
        let own = desk.ask(Some(&other)).unwrap().devices.disks[1].path.clone();
        assert!(own.starts_with(desk.folder().path()), "{own:?}");
        // Now it keeps a disk of the one VM, and is asked for another one of that name.
        let refused = desk.ask(Some(&other)).unwrap_err().to_string();
        assert!(refused.contains("disks of another VM") && refused.contains("--discard-disks"), "{refused}");
        assert!(matches!(desk.ask(None), Err(DiskError::Others { .. })));

        fs::remove_dir_all(desk.folder().disks()).unwrap();
        File::create(&image).unwrap().set_len(MIB).unwrap();
        let refused = desk.ask(Some(&had)).unwrap_err().to_string();
        assert!(refused.contains("mine.img, has 1048576 bytes"), "{refused}");
    }

    #[test]
    fn what_cannot_be_is_refused_and_leaves_nothing() {
        let mut desk = Desk::new();
        for bytes in [0, 100, 513, limits::DISK_BYTES + 512, u64::MAX] {
            desk.disks[0].bytes = bytes;
            assert!(matches!(desk.ask(None), Err(DiskError::Size { .. })), "{bytes}");
        }
        desk.disks[0].bytes = limits::DISK_BYTES;
        let refused = desk.ask(None).unwrap_err().to_string();
        assert!(
            refused.contains("not enough room in") && refused.contains("16777216 MiB are needed"),
            "{refused}"
        );
        desk.disks[0].bytes = MIB;
        desk.disks[0].serial = "../../etc".to_owned();
        assert!(matches!(desk.ask(None), Err(DiskError::Asked(_))));
        desk.disks.clear();
        assert!(matches!(desk.ask(None), Err(DiskError::Asked(_))));
        desk.disks.push(DiskAsked { serial: "data".to_owned(), bytes: MIB });
        desk.mark = Mark("../x".to_owned());
        assert!(matches!(desk.ask(None), Err(DiskError::Asked(_))));
        assert!(!desk.folder().disks().exists());
    }

    #[test]
    fn what_images_may_grow_by_is_not_free() {
        let desk = Desk::new();
        desk.ask(None).unwrap();
        let free = room_in(&desk.folder()).unwrap();
        let image = VmFolder::of(desk.dir.path(), "b").disks().join("disk0.raw");
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        make_image(&image, 1 << 40).unwrap();
        let then = room_in(&desk.folder()).unwrap();
        // Others use the file system, too.
        assert!(then == 0 || free - then > 1 << 39, "{free} {then}");
    }
}
