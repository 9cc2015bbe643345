//! What a task leaves outside its bundle, and the note of it in the bundle by which `delete` cleans up after a shim that
//! was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Short paths: a Unix socket's has at most 107 bytes, and a bundle's is longer than that.
const RUN: &str = "/run/endophyte/tasks";
const NOTE: &str = "endophyte.json";

/// A short name for a container that no other of this host has.
pub(crate) fn short_name(namespace: &str, containerd: &str, id: &str) -> String {
    let hash = Sha256::digest(format!("{namespace}\n{containerd}\n{id}"));
    hash.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The folder for a task's sockets; not made yet.
pub(crate) fn folder(short_name: &str) -> PathBuf {
    Path::new(RUN).join(short_name)
}

/// Makes the folder, for its owner alone.
pub(crate) fn make(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// What has to be undone for a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) folder: Option<PathBuf>,
    pub(crate) cgroups_path: Option<String>,
    /// The VMM, with the start time that tells it from a later process of the same number.
    pub(crate) vmm: Option<(u32, u64)>,
}

impl Note {
    /// Writes it into the bundle; before each thing it tells of is made.
    pub(crate) fn save(&self, bundle: &Path) -> io::Result<()> {
        let text = json!({
            "folder": self.folder,
            "cgroups_path": self.cgroups_path,
            "vmm_pid": self.vmm.map(|v| v.0),
            "vmm_start": self.vmm.map(|v| v.1),
        });
        let fresh = bundle.join(".endophyte.json.new");
        fs::write(&fresh, text.to_string())?;
        fs::rename(fresh, bundle.join(NOTE))
    }

    /// Reads it; a bundle without one has nothing to undo.
    pub(crate) fn load(bundle: &Path) -> Self {
        let text = fs::read(bundle.join(NOTE)).unwrap_or_default();
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let pid = value["vmm_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Self {
            folder: text("folder").map(PathBuf::from).filter(|path| path.starts_with(RUN)),
            cgroups_path: text("cgroups_path"),
            vmm: pid.zip(value["vmm_start"].as_u64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Note::load(bundle.path()), Note::default());
        let note = Note {
            folder: Some(folder("abc")),
            cgroups_path: Some("/kubepods/x".into()),
            vmm: Some((12, 3_000)),
        };
        note.save(bundle.path()).unwrap();
        assert_eq!(Note::load(bundle.path()), note);
    }

    #[test]
    fn a_note_cannot_have_other_folders_removed() {
        let bundle = tempfile::tempdir().unwrap();
        Note { folder: Some("/etc".into()), ..Note::default() }.save(bundle.path()).unwrap();
        assert_eq!(Note::load(bundle.path()).folder, None);
    }

    #[test]
    fn short_names_differ_by_namespace_and_daemon() {
        let one = short_name("k8s.io", "/run/containerd/containerd.sock", "x");
        assert_eq!(one.len(), 16);
        assert_ne!(one, short_name("moby", "/run/containerd/containerd.sock", "x"));
        assert_ne!(one, short_name("k8s.io", "/run/other.sock", "x"));
    }
}
