//! Mounting what the snapshotter has prepared.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// The image could not be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot mount the image ({kind} from {source_path}) on {target}: {source}")]
    Mount { kind: String, source_path: String, target: PathBuf, source: io::Error },
    #[error("cannot make the mount point {path}: {source}")]
    Folder { path: PathBuf, source: io::Error },
}

/// Mounts on `target`, one over the other, in order. On an error nothing stays mounted.
pub(crate) fn attach(mounts: &[Mount], target: &Path) -> Result<(), RootfsError> {
    fs::create_dir_all(target).map_err(|source| RootfsError::Folder { path: target.to_owned(), source })?;
    mounts.iter().try_for_each(|m| attach_one(m, target)).inspect_err(|_| detach(target))
}

/// Unmounts everything from `target`.
pub(crate) fn detach(target: &Path) {
    // Lazily: whoever still looks into it must not keep a dead container alive.
    while unmount(target, UnmountFlags::DETACH).is_ok() {}
}

fn attach_one(m: &Mount, target: &Path) -> Result<(), RootfsError> {
    let fail = |source: io::Error| RootfsError::Mount {
        kind: m.type_.clone(),
        source_path: m.source.clone(),
        target: target.to_owned(),
        source,
    };
    let (flags, data) = options(&m.options);
    let data = CString::new(data).map_err(|e| fail(e.into()))?;
    if m.type_ == "bind" || flags.contains(MountFlags::BIND) {
        let recurse = if flags.contains(MountFlags::REC) { MountFlags::REC } else { MountFlags::empty() };
        mount(&m.source, target, "bind", MountFlags::BIND | recurse, None).map_err(|e| fail(e.into()))?;
        // A bind mount takes its flags in a second step.
        return mount_remount(target, flags | MountFlags::BIND, "").map_err(|e| fail(e.into()));
    }
    mount(&m.source, target, m.type_.as_str(), flags, Some(data.as_c_str())).map_err(|e| fail(e.into()))
}

/// Options that are flags of the system call, and the rest, which is the file system's.
fn options(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" => {}
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_the_file_systems_own_options_are_parted() {
        let given = ["ro", "lowerdir=/a:/b", "nosuid", "index=off"].map(str::to_owned);
        let (flags, data) = options(&given);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(data, "lowerdir=/a:/b,index=off");
    }

    #[test]
    fn a_failed_mount_names_what_and_where() {
        let dir = tempfile::tempdir().unwrap();
        let mount = Mount { type_: "no-such-fs".into(), source: "nothing".into(), ..Mount::default() };
        let message = attach(&[mount], &dir.path().join("rootfs")).unwrap_err().to_string();
        assert!(message.contains("no-such-fs") && message.contains("rootfs"), "{message}");
    }
}
