//! The records on disk: one JSON file per VM, replaced atomically and synced before anybody is told.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mycelium_ram_core::VmId;
use mycelium_ram_core::record::{Record, Swap, Verdict, decide};
use mycelium_ram_core::settle::{Reply, Request};

/// The disk failed, or holds something that is not ours.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder or a file in it.
    #[error("{doing} {path}: {source}; check that the disk has room and that this user may write there")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record that does not parse must not be taken for no record.
    #[error(
        "{path} is not a record: {source}; restore it from a backup, or remove it if the VM runs nowhere"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Another arbiter has the folder.
    #[error("{0} is in use by another arbiter process; two arbiters on one folder would be two opinions")]
    Locked(PathBuf),
}

/// The folder of records.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens or makes the folder, for this process alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(|e| io_error("make folder", dir, e))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(|e| io_error("open", &path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
            Err(fs::TryLockError::Error(e)) => Err(io_error("lock", &path, e)),
        }
    }

    /// Deals with a question. When this returns a reply, it is on disk.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is decided, or it is not known whether it is; asking again settles it.
    pub fn answer(&mut self, vm: &VmId, request: &Request) -> Result<Reply, StoreError> {
        let current = self.read(vm)?;
        match request {
            Request::Read => Ok(Reply::Record(current)),
            Request::Swap(swap) => self.swap(vm, current, swap),
        }
    }

    /// Removes a record, on an operator's explicit order. Returns what it was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget(&mut self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        let record = self.read(vm)?;
        if record.is_some() {
            let path = self.path(vm);
            fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
            self.sync_dir()?;
        }
        Ok(record)
    }

    fn swap(&mut self, vm: &VmId, current: Option<Record>, swap: &Swap) -> Result<Reply, StoreError> {
        let op = swap.op;
        if swap.vm != *vm {
            let refusal = mycelium_ram_core::record::Refusal::NoRecord;
            return Ok(Reply::Refused { op, refusal, record: None });
        }
        match (decide(current.as_ref(), swap), current) {
            (Verdict::Apply(record), _) => {
                self.write(vm, &record)?;
                tracing::info!(%vm, version = record.version, generation = record.generation.0,
                    active = %record.active, in_sync = record.in_sync.len(), "record changed");
                Ok(Reply::Applied { op, record })
            }
            (Verdict::Already, Some(record)) => Ok(Reply::Applied { op, record }),
            (Verdict::Already, None) => unreachable!("only an existing record holds an operation"),
            (Verdict::Refuse(refusal), record) => Ok(Reply::Refused { op, refusal, record }),
        }
    }

    fn read(&self, vm: &VmId) -> Result<Option<Record>, StoreError> {
        let path = self.path(vm);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| StoreError::Damaged { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path, e)),
        }
    }

    fn write(&self, vm: &VmId, record: &Record) -> Result<(), StoreError> {
        let (path, fresh) = (self.path(vm), self.dir.join(format!("{vm}.new")));
        let write = || -> io::Result<()> {
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()
        };
        write().map_err(|e| io_error("write", &fresh, e))?;
        fs::rename(&fresh, &path).map_err(|e| io_error("replace", &path, e))?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), StoreError> {
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(|e| io_error("sync", &self.dir, e))
    }

    fn path(&self, vm: &VmId) -> PathBuf {
        self.dir.join(format!("{vm}.json"))
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mycelium_ram_core::record::{Change, LossPolicy};
    use mycelium_ram_core::{Incarnation, Member, NodeId, OpId};

    fn create() -> (VmId, Request) {
        let vm = VmId::new("vm").unwrap();
        let proposer = Member { node: NodeId([1; 32]), incarnation: Incarnation(1) };
        let op = OpId { incarnation: proposer.incarnation, count: 1 };
        let change = Change::Create { policy: LossPolicy::Degrade };
        (vm.clone(), Request::Swap(Swap { vm, expected_version: 0, proposer, op, change }))
    }

    #[test]
    fn a_record_survives_a_restart_and_a_repeated_swap() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, create) = create();
        let first = Store::open(dir.path()).unwrap().answer(&vm, &create).unwrap();
        let mut again = Store::open(dir.path()).unwrap();
        assert_eq!(again.answer(&vm, &create).unwrap(), first);
        assert_eq!(again.answer(&vm, &Request::Read).unwrap().record(), first.record());
        assert!(again.forget(&vm).unwrap().is_some());
        assert_eq!(again.answer(&vm, &Request::Read).unwrap(), Reply::Record(None));
    }

    #[test]
    fn a_damaged_record_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, create) = create();
        fs::write(dir.path().join("vm.json"), b"{\"vm\":").unwrap();
        let error = Store::open(dir.path()).unwrap().answer(&vm, &create).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_second_arbiter_on_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked(_))));
    }

    #[test]
    fn a_full_disk_decides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, create) = create();
        let mut store = Store::open(dir.path()).unwrap();
        // A folder in the way of the new file stands for any failure to write it.
        fs::create_dir(dir.path().join("vm.new")).unwrap();
        assert!(store.answer(&vm, &create).is_err());
        assert_eq!(store.answer(&vm, &Request::Read).unwrap(), Reply::Record(None));
    }
}
