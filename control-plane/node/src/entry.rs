//! A VM of this node as it is kept on disk, so that the next daemon finds it again: `vms/NAME/vm.json` beside its spec, its
//! run folder and its process's log.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disks::Mark;

/// What a VM's process was started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StartedAs {
    Active,
    Passive,
    /// Without protection, now and later.
    Alone,
}

/// One VM of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) started_as: StartedAs,
    /// Keep a replica while it runs here.
    pub(crate) protect: bool,
    /// degrade or halt.
    pub(crate) on_loss: String,
    pub(crate) ram_bytes: u64,
    /// The process, with the start time that tells it from a later one of the same number.
    pub(crate) process: Option<(u32, u64)>,
    /// How it ended, once it has.
    pub(crate) ended: Option<String>,
    /// The pod that is this VM; `None` for a VM the daemon started itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Pod>,
    /// Which VM of that name it is; empty for a pod's, and for one of a daemon that gave none.
    #[serde(default)]
    pub(crate) mark: Mark,
}

/// A pod of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) group: String,
    /// Its shim, as process number and start time.
    pub(crate) shim: (u32, u64),
    /// Where its VMM answers.
    pub(crate) api: PathBuf,
}

/// The folder of one VM.
#[derive(Clone, Debug)]
pub(crate) struct VmFolder(PathBuf);

impl VmFolder {
    pub(crate) fn of(daemon_folder: &Path, name: &str) -> Self {
        Self(daemon_folder.join("vms").join(name))
    }

    /// All VMs that have a folder.
    pub(crate) fn all(daemon_folder: &Path) -> Vec<(Self, Entry)> {
        let folders = Self::under(&daemon_folder.join("vms"));
        folders.filter_map(|folder| Some((folder.clone(), folder.load()?))).collect()
    }

    fn under(vms: &Path) -> impl Iterator<Item = Self> + use<> {
        fs::read_dir(vms).into_iter().flatten().flatten().map(|entry| Self(entry.path()))
    }

    /// The folders of all VMs of this daemon.
    pub(crate) fn siblings(&self) -> Vec<Self> {
        self.0.parent().map(|vms| Self::under(vms).collect()).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn spec(&self) -> PathBuf {
        self.0.join("vm.toml")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Where the VM's process may write what it is asked to save. Not in this folder, which goes with the VM.
    pub(crate) fn snapshots(&self) -> PathBuf {
        let daemon_folder = self.0.ancestors().nth(2).unwrap_or(&self.0);
        daemon_folder.join("snapshots").join(self.0.file_name().unwrap_or_default())
    }

    /// Images of disks that this daemon made.
    pub(crate) fn disks(&self) -> PathBuf {
        self.0.join("disks")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("endophyte.log")
    }

    pub(crate) fn save(&self, entry: &Entry) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let fresh = self.0.join(".vm.json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(entry)?)?;
        fs::rename(fresh, self.0.join("vm.json"))
    }

    fn load(&self) -> Option<Entry> {
        let text = fs::read(self.0.join("vm.json")).ok()?;
        match serde_json::from_slice(&text) {
            Ok(entry) => Some(entry),
            Err(error) => {
                tracing::error!(folder = %self.0.display(), %error, "a VM's file is damaged and left alone");
                None
            }
        }
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }

    pub(crate) fn remove_if_there(&self) -> io::Result<()> {
        self.remove()
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_outlive_the_vm() {
        let folder = VmFolder::of(Path::new("/state"), "a");
        assert_eq!(folder.snapshots(), Path::new("/state/snapshots/a"));
    }

    #[test]
    fn an_entry_is_found_again_and_a_damaged_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let entry = Entry {
            name: "a".into(),
            started_as: StartedAs::Active,
            protect: true,
            on_loss: "degrade".into(),
            ram_bytes: 1,
            process: Some((1, 2)),
            ended: None,
            pod: None,
            mark: Mark::new(),
        };
        VmFolder::of(dir.path(), "a").save(&entry).unwrap();
        let damaged = VmFolder::of(dir.path(), "b");
        damaged.save(&entry).unwrap();
        fs::write(damaged.path().join("vm.json"), "{").unwrap();
        let found = VmFolder::all(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, entry);
        assert!(damaged.path().join("vm.json").exists());
    }
}
