//! Memory to save and restore, and snapshots of it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use endophyte_snapshot::lazy::Region;
use endophyte_snapshot::{FileMemory, SaveError, Snapshot, SnapshotWriter};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use tempfile::TempDir;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

pub(crate) const PAGE: usize = 4096;

/// A memfd like the one behind guest RAM.
pub(crate) struct Ram {
    pub(crate) memfd: OwnedFd,
    pub(crate) pages: u64,
}

impl Ram {
    pub(crate) fn new(pages: u64) -> Ram {
        let memfd = memfd_create("test-ram", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, pages * PAGE as u64).unwrap();
        Ram { memfd, pages }
    }

    /// With runs of random contents that cover about `tenths` tenths of it.
    pub(crate) fn random(pages: u64, tenths: u32, seed: u64) -> Ram {
        let (ram, mut rng) = (Ram::new(pages), ChaCha8Rng::seed_from_u64(seed));
        let mut page = 0;
        while page < pages {
            let run = rng.random_range(1..200).min(pages - page);
            if rng.random_range(0..10) < tenths {
                (page..page + run).for_each(|page| ram.fill(page, &mut rng));
            }
            page += run;
        }
        ram
    }

    fn fill(&self, page: u64, rng: &mut ChaCha8Rng) {
        let mut bytes = [0; PAGE];
        rng.fill_bytes(&mut bytes);
        self.write(page, &bytes);
    }

    pub(crate) fn write(&self, page: u64, bytes: &[u8]) {
        assert_eq!(pwrite(&self.memfd, bytes, page * PAGE as u64).unwrap(), bytes.len());
    }

    pub(crate) fn page(&self, page: u64) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        assert_eq!(pread(&self.memfd, &mut bytes, page * PAGE as u64).unwrap(), PAGE);
        bytes
    }

    pub(crate) fn memory(&self) -> FileMemory<'_> {
        FileMemory::new(self.memfd.as_fd(), self.pages)
    }

    pub(crate) fn map(&self) -> Arc<Mapping> {
        let file = File::from(self.memfd.try_clone().unwrap());
        let bytes = usize::try_from(self.pages).unwrap() * PAGE;
        Arc::new(Mapping(MmapRegion::from_file(FileOffset::new(file, 0), bytes).unwrap()))
    }
}

/// Shared mapping of a [`Ram`].
pub(crate) struct Mapping(MmapRegion);

impl Mapping {
    /// All of it, as two regions, as the hole below 4 GiB makes them.
    pub(crate) fn regions(self: &Arc<Mapping>) -> Vec<Region> {
        let (host, pages) = (self.0.as_ptr() as usize, (self.0.size() / PAGE) as u64);
        let low = pages / 3;
        let [first, second] = [(0, low), (low, pages - low)].map(|(first, pages)| {
            let host = host + usize::try_from(first).unwrap() * PAGE;
            // SAFETY: the mapping is shared and writable, lives as long as its `Arc`, and `vm-memory` makes no references
            // into it.
            unsafe { Region::new(first, pages, host, Arc::<Mapping>::clone(self)) }
        });
        vec![first, second]
    }

    pub(crate) fn page(&self, page: u64) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        self.slice(page).read_slice(&mut bytes, 0).unwrap();
        bytes
    }

    pub(crate) fn slice(&self, page: u64) -> VolatileSlice<'_> {
        self.0.get_slice(usize::try_from(page).unwrap() * PAGE, PAGE).unwrap()
    }
}

/// A folder with one snapshot.
pub(crate) struct Saved {
    pub(crate) folder: TempDir,
}

impl Saved {
    pub(crate) fn of(ram: &Ram) -> Saved {
        let folder = tempfile::tempdir().unwrap();
        save(ram, &folder.path().join("vm.snapshot")).unwrap();
        Saved { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("vm.snapshot")
    }

    pub(crate) fn open(&self) -> Snapshot {
        Snapshot::open(self.path()).unwrap()
    }

    /// Flips one bit of the contents of `page`, or of a page stored with it.
    pub(crate) fn damage(&self, ram: &Ram, page: u64) {
        let mut bytes = std::fs::read(self.path()).unwrap();
        let wanted = ram.page(page);
        let at = bytes.as_chunks::<PAGE>().0.iter().position(|stored| *stored == wanted).unwrap();
        bytes[at * PAGE + 17] ^= 4;
        std::fs::write(self.path(), bytes).unwrap();
    }
}

pub(crate) const METADATA: &[u8] = br#"{"name":"vm"}"#;

pub(crate) fn save(ram: &Ram, path: &Path) -> Result<(), SaveError> {
    let mut writer = SnapshotWriter::create(path)?;
    writer.metadata(METADATA)?;
    writer.state(&[7; 5000])?;
    writer.pages(&ram.memory(), &mut |_, _| ())?;
    writer.commit()
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
