//! A control group of the VM's own, of version 2 or 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::SandboxError;
use crate::limits::{MEMORY_ALLOWANCE_BYTES, THREADS_MAX};

/// A control group to move into.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Its folder; made if there is none.
    pub path: PathBuf,
    /// Bounds memory to this RAM, in bytes, and an allowance, and the number of threads.
    pub limit_to_ram: Option<u64>,
}

/// A limit's file names (version 2, version 1) and its value.
type Limit = ([&'static str; 2], u64);

impl Cgroup {
    /// Moves this process into it, limits first.
    pub(crate) fn enter(&self) -> Result<(), SandboxError> {
        let fail = |action: &str, source, remedy| SandboxError::Cgroup {
            path: self.path.clone(),
            action: action.to_owned(),
            source,
            remedy,
        };
        match fs::create_dir(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(fail(
                    "make it",
                    e,
                    "its parent must be a control group that this user may change",
                ));
            }
            _ => {}
        }
        if !self.path.join("cgroup.procs").exists() {
            let source = io::ErrorKind::NotFound.into();
            return Err(fail("find cgroup.procs", source, "give a folder under /sys/fs/cgroup"));
        }
        for limit in self.limits() {
            write_limit(&self.path, limit).map_err(|e| {
                let remedy =
                    "switch the memory and pids controllers on in cgroup.subtree_control of its parent";
                fail(&format!("write {}", limit.0[0]), e, remedy)
            })?;
        }
        fs::write(self.path.join("cgroup.procs"), std::process::id().to_string()).map_err(|e| {
            fail("move this process there", e, "it must have no child groups with controllers of their own")
        })
    }

    fn limits(&self) -> impl Iterator<Item = Limit> {
        let ram = self.limit_to_ram.into_iter();
        ram.flat_map(|ram| {
            let memory = ram.saturating_add(MEMORY_ALLOWANCE_BYTES);
            [(["memory.max", "memory.limit_in_bytes"], memory), (["pids.max", "pids.max"], THREADS_MAX)]
        })
    }
}

/// Version 1 has a folder per controller: there, the limits of others do not exist.
fn write_limit(group: &Path, (names, value): Limit) -> io::Result<()> {
    let is_v2 = group.join("cgroup.controllers").exists();
    let existing = names.iter().map(|name| group.join(name)).find(|path| path.exists());
    match existing {
        Some(path) => fs::write(path, value.to_string()),
        None if is_v2 => Err(io::ErrorKind::NotFound.into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files a kernel would show.
    fn group(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
        dir
    }

    fn enter(dir: &Path, ram: Option<u64>) -> Result<(), String> {
        Cgroup { path: dir.to_owned(), limit_to_ram: ram }.enter().map_err(|e| e.to_string())
    }

    #[test]
    fn limits_are_written_under_the_names_there_are() {
        let v2 = group(&["cgroup.procs", "cgroup.controllers", "memory.max", "pids.max"]);
        enter(v2.path(), Some(1 << 30)).unwrap();
        let text = |dir: &tempfile::TempDir, name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(text(&v2, "memory.max"), ((1u64 << 30) + MEMORY_ALLOWANCE_BYTES).to_string());
        assert_eq!(text(&v2, "pids.max"), THREADS_MAX.to_string());
        assert_eq!(text(&v2, "cgroup.procs"), std::process::id().to_string());
        let v1 = group(&["cgroup.procs", "memory.limit_in_bytes"]);
        enter(v1.path(), Some(0)).unwrap();
        assert_eq!(text(&v1, "memory.limit_in_bytes"), MEMORY_ALLOWANCE_BYTES.to_string());
    }

    #[test]
    fn what_is_no_group_and_a_missing_controller_are_told_apart() {
        let folder = group(&[]);
        assert!(enter(folder.path(), None).unwrap_err().contains("/sys/fs/cgroup"));
        let v2 = group(&["cgroup.procs", "cgroup.controllers"]);
        assert!(enter(v2.path(), Some(1)).unwrap_err().contains("subtree_control"));
        enter(v2.path(), None).unwrap();
        assert!(enter(&folder.path().join("a/b"), None).unwrap_err().contains("make it"));
    }
}
