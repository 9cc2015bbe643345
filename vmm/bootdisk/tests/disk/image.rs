//! Making disks.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use endophyte_bootdisk::{BootDiskError, BootFile, BootPlan, Options, RawDisk, find};
use tempfile::TempDir;

pub(crate) const ROOT: &str = "0f1e2d3c-1111-4222-8333-444455556666";
pub(crate) const BOOT: &str = "a0b1c2d3-7777-4888-9999-aaaabbbbcccc";
pub(crate) const KERNEL: &str = "6.1.0-18-amd64";
const MIB: u64 = 1 << 20;

/// A disk image being made.
pub(crate) struct Image {
    folder: TempDir,
    file: File,
    bytes: u64,
}

/// A partition: its first byte and its size.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

pub(crate) fn mib(start: u64, size: u64) -> Range {
    Range { start: start * MIB, bytes: size * MIB }
}

/// Files by path; a value that begins with `->` is a link.
pub(crate) type Tree<'a> = &'a [(&'a str, &'a str)];

/// False, and a line that can be counted, where e2fsprogs is not installed.
pub(crate) fn can_make() -> bool {
    let there = Command::new("mkfs.ext4").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = there.is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: mkfs.ext4 is not installed");
    }
    there
}

impl Image {
    pub(crate) fn new(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(bytes).unwrap();
        Self { folder, file, bytes }
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    pub(crate) fn set_len(&self, bytes: u64) {
        self.file.set_len(bytes).unwrap();
    }

    /// Makes a file system; `more` goes to `mkfs.ext4`.
    pub(crate) fn ext4(&self, at: Range, uuid: &str, tree: Tree<'_>, more: &[&str]) {
        self.ext4_with(at, uuid, tree, more, |_| {});
    }

    /// The same after `change` had the folder it is made from.
    pub(crate) fn ext4_with(
        &self,
        at: Range,
        uuid: &str,
        tree: Tree<'_>,
        more: &[&str],
        change: impl FnOnce(&Path),
    ) {
        let from = self.folder.path().join(format!("tree-{}", at.start));
        for (path, contents) in tree {
            plant(&from.join(path.trim_start_matches('/')), contents);
        }
        fs::create_dir_all(&from).unwrap();
        change(&from);
        let offset = format!("offset={}", at.start);
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-F", "-U", uuid, "-E", &offset, "-d"]).arg(&from).args(more);
        command.arg(self.folder.path().join("disk.img")).arg(format!("{}k", at.bytes / 1024));
        assert!(command.status().unwrap().success());
    }

    /// Gives every folder of the bare file system an index that is worth one.
    pub(crate) fn index_folders(&self) {
        let mut command = Command::new("e2fsck");
        command
            .args(["-fyD"])
            .arg(self.folder.path().join("disk.img"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        assert!(command.status().unwrap().code().is_some_and(|code| code < 4));
    }

    /// Changes all blocks of 1 KiB that are `wanted`; returns how many.
    pub(crate) fn change_blocks(&self, wanted: fn(&[u8]) -> bool, change: fn(&mut [u8])) -> usize {
        let (mut block, mut changed) = ([0; 1024], 0);
        for at in (0..self.bytes).step_by(block.len()) {
            self.file.read_exact_at(&mut block, at).unwrap();
            if wanted(&block) {
                change(&mut block);
                self.write(at, &block);
                changed += 1;
            }
        }
        changed
    }

    pub(crate) fn gpt(&self, sector: u64, partitions: &[Range]) {
        self.write(0, &mbr_sector(&[(0xee, 1, 0xffff)]));
        let mut array = vec![0; 128 * 128];
        for (entry, range) in array.chunks_exact_mut(128).zip(partitions) {
            // The type of Linux file systems, and some GUID.
            entry[..16].copy_from_slice(b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4");
            entry[16..32].fill(7);
            entry[32..40].copy_from_slice(&(range.start / sector).to_le_bytes());
            entry[40..48].copy_from_slice(&((range.start + range.bytes) / sector - 1).to_le_bytes());
        }
        let last = self.bytes / sector - 1;
        let array_sectors = 128 * 128 / sector;
        for (here, other, at) in [(1, last, 2), (last, 1, last - array_sectors)] {
            self.write(at * sector, &array);
            self.write(here * sector, &gpt_header(here, other, at, &array));
        }
    }

    /// Primary partitions, then an extended one with a logical partition in each of `logical`, whose table sector lies a
    /// MiB before it.
    pub(crate) fn mbr(&self, primary: &[Range], logical: &[Range]) {
        let sectors = |bytes: u64| u32::try_from(bytes / 512).unwrap();
        let mut entries: Vec<_> =
            primary.iter().map(|r| (0x83, sectors(r.start), sectors(r.bytes))).collect();
        let table = |range: &Range| sectors(range.start - MIB);
        if let Some(first) = logical.first() {
            entries.push((0x05, table(first), sectors(self.bytes) - table(first)));
        }
        self.write(0, &mbr_sector(&entries));
        for (i, range) in logical.iter().enumerate() {
            let mut link = vec![(0x83, sectors(MIB), sectors(range.bytes))];
            link.extend(
                logical.get(i + 1).map(|next| (0x05, table(next) - table(&logical[0]), sectors(next.bytes))),
            );
            self.write(range.start - MIB, &mbr_sector(&link));
        }
    }

    pub(crate) fn find(&self) -> Result<BootPlan, BootDiskError> {
        self.find_entry(None)
    }

    pub(crate) fn find_entry(&self, entry: Option<&str>) -> Result<BootPlan, BootDiskError> {
        let disk = RawDisk::new(self.file.try_clone().unwrap()).unwrap();
        find(Arc::new(disk), &Options { entry: entry.map(str::to_owned) })
    }
}

fn plant(path: &Path, contents: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match contents.strip_prefix("->") {
        Some(target) => symlink(target, path).unwrap(),
        None => fs::write(path, contents).unwrap(),
    }
}

fn mbr_sector(entries: &[(u8, u32, u32)]) -> [u8; 512] {
    let mut sector = [0; 512];
    for (entry, (kind, start, sectors)) in sector[446..510].chunks_exact_mut(16).zip(entries) {
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn gpt_header(here: u64, other: u64, array_at: u64, array: &[u8]) -> Vec<u8> {
    let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
    header.resize(24, 0);
    for lba in [here, other, 34, other] {
        header.extend(lba.to_le_bytes());
    }
    header.extend([9; 16]);
    header.extend(array_at.to_le_bytes());
    for number in [128, 128, crc32fast::hash(array)] {
        header.extend(u32::to_le_bytes(number));
    }
    let sum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header
}

/// A configuration of `fixtures`, with the file systems' names in their places.
pub(crate) fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let text = fs::read_to_string(path).unwrap();
    match name.contains("boot") || name.contains("fedora") {
        true => text.replace("@ROOT@", BOOT).replace("@BOOT@", BOOT).replace("@SYSTEM@", ROOT),
        false => text.replace("@ROOT@", ROOT),
    }
}

pub(crate) fn contents(file: &mut BootFile) -> String {
    let mut text = String::new();
    assert_eq!(file.read_to_string(&mut text).unwrap() as u64, file.bytes);
    text
}
