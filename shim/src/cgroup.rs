//! The container's cgroup: made here, because for a VM there is no runc to make it. The VMM starts inside it.
//!
//! Kubernetes limits the pod's cgroup, which is the parent; the memory limit of the container is the guest's RAM and is
//! not set here again, or the VMM's own few MiB would be taken from the guest.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// Hierarchies of cgroup v1 that count or limit what a VM uses.
const V1: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];

/// A cgroup, in every hierarchy it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    pub(crate) dirs: Dirs,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dirs {
    /// By controller, in the order of [`V1`].
    V1(Vec<PathBuf>),
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroup of an OCI spec's `cgroupsPath`, in either of its two forms; nothing is made.
    pub(crate) fn at(cgroups_path: &str) -> Self {
        Self::below(Path::new(ROOT), &relative(cgroups_path))
    }

    fn below(root: &Path, path: &Path) -> Self {
        if root.join("cgroup.controllers").exists() {
            return Self { dirs: Dirs::V2(root.join(path)) };
        }
        let mounted = V1.iter().map(|controller| root.join(controller)).filter(|dir| dir.is_dir());
        Self { dirs: Dirs::V1(mounted.map(|dir| dir.join(path)).collect()) }
    }

    fn all(&self) -> &[PathBuf] {
        match &self.dirs {
            Dirs::V1(dirs) => dirs,
            Dirs::V2(dir) => std::slice::from_ref(dir),
        }
    }

    /// Makes it.
    pub(crate) fn create(&self) -> io::Result<()> {
        self.all().iter().try_for_each(fs::create_dir_all)
    }

    /// Descriptors to which a process that writes "0" joins the cgroup: for the moment between fork and exec.
    pub(crate) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |dir: &PathBuf| Ok(OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?.into());
        self.all().iter().map(open).collect()
    }

    /// Processes in it.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let listed = self.all().first().map(|dir| dir.join("cgroup.procs")).map(fs::read_to_string);
        listed
            .and_then(Result::ok)
            .map_or_else(Vec::new, |t| t.lines().filter_map(|l| l.parse().ok()).collect())
    }

    /// Removes it. One that still holds a process stays.
    pub(crate) fn remove(&self) {
        for dir in self.all() {
            let _ = fs::remove_dir(dir);
        }
    }

    /// A file of one controller (v1) or of the only hierarchy (v2).
    pub(crate) fn file(&self, v1_controller: &str, name: &str) -> Option<String> {
        let dir = match &self.dirs {
            Dirs::V2(dir) => dir.clone(),
            Dirs::V1(dirs) => {
                let prefix = Path::new(ROOT).join(v1_controller);
                dirs.iter().find(|dir| dir.starts_with(&prefix))?.clone()
            }
        };
        fs::read_to_string(dir.join(name)).ok()
    }
}

/// Below a hierarchy's root. systemd's form, `slice:prefix:name`, is spelled out as systemd would nest it.
fn relative(cgroups_path: &str) -> PathBuf {
    let parts: Vec<&str> = cgroups_path.split(':').collect();
    if let [slice, prefix, name] = parts[..] {
        let mut path = PathBuf::new();
        let stem = slice.trim_end_matches(".slice");
        for (at, _) in stem.match_indices('-') {
            path.push(format!("{}.slice", &stem[..at]));
        }
        path.push(format!("{stem}.slice"));
        path.push(format!("{prefix}-{name}.scope"));
        return path;
    }
    // `..` would leave the hierarchy.
    Path::new(cgroups_path).components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect()
}

/// Joins the calling process; for use between fork and exec, so it only writes.
pub(crate) fn enter(doors: &[OwnedFd]) -> io::Result<()> {
    for door in doors {
        let written = rustix::io::write(door, b"0")?;
        debug_assert_eq!(written, 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_cgroups_path() {
        assert_eq!(relative("/kubepods/burstable/podX/abc"), Path::new("kubepods/burstable/podX/abc"));
        assert_eq!(relative("/a/../../b"), Path::new("a/b"));
        assert_eq!(
            relative("kubepods-burstable-pod1.slice:cri-containerd:abc"),
            Path::new(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
            )
        );
    }

    #[test]
    fn only_mounted_hierarchies_are_used() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["memory", "pids"] {
            fs::create_dir(root.path().join(controller)).unwrap();
        }
        let group = Cgroup::below(root.path(), Path::new("x/y"));
        group.create().unwrap();
        assert!(root.path().join("memory/x/y").is_dir() && root.path().join("pids/x/y").is_dir());
        group.remove();
        assert!(!root.path().join("memory/x/y").exists());
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(Cgroup::below(root.path(), Path::new("x")).dirs, Dirs::V2(root.path().join("x")));
    }
}
