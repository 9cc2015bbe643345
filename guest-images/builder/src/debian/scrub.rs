//! Takes out of a tree what differs from build to build, and what a machine must not share with another.

use std::fs;
use std::io;
use std::path::Path;

use super::tree::Tree;
use crate::ImageError;

/// Folders that stay, empty.
const EMPTIED: [&str; 8] = [
    "/tmp",
    "/run",
    "/dev",
    "/var/tmp",
    "/var/lib/apt/lists",
    "/var/cache/apt",
    "/var/cache/debconf",
    "/var/cache/ldconfig",
];
/// Kept by a running system, or backups of what is beside them.
const REMOVED: [&str; 15] = [
    "/etc/passwd-",
    "/etc/group-",
    "/etc/shadow-",
    "/etc/gshadow-",
    "/etc/subuid-",
    "/etc/subgid-",
    "/etc/.pwd.lock",
    "/etc/apt/apt.conf.d/99mmdebstrap",
    "/root/.bash_history",
    "/var/lib/dpkg/status-old",
    "/var/lib/dpkg/diversions-old",
    "/var/lib/dpkg/statoverride-old",
    "/var/lib/dpkg/available-old",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
];
/// What a system of this name should not be built with.
const RESOLV_CONF: &str = "# No name server is known. Install systemd-resolved to take them from DHCP.\n";

/// Cleans the tree.
pub(crate) fn scrub(tree: &Tree) -> Result<(), ImageError> {
    for path in EMPTIED {
        empty(&tree.path(path)).map_err(ImageError::file("empty in the image", path))?;
    }
    for path in REMOVED {
        absent(fs::remove_file(tree.path(path))).map_err(ImageError::file("remove in the image", path))?;
    }
    without_logs(&tree.path("/var/log")).map_err(ImageError::file("empty in the image", "/var/log"))?;
    without_host_keys(&tree.path("/etc/ssh")).map_err(ImageError::file("empty in the image", "/etc/ssh"))?;
    // Empty, not missing: the first start then makes an identity without taking itself for an installation.
    tree.write("/etc/machine-id", "")?;
    let dbus = tree.path("/var/lib/dbus/machine-id");
    if dbus.is_file() && !dbus.is_symlink() {
        fs::remove_file(&dbus).map_err(ImageError::file("remove", dbus))?;
    }
    // A link belongs to a program that manages it.
    if !tree.path("/etc/resolv.conf").is_symlink() {
        tree.write("/etc/resolv.conf", RESOLV_CONF)?;
    }
    Ok(())
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn empty(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Daemons want their folders.
fn without_logs(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            without_logs(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn without_host_keys(folder: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
