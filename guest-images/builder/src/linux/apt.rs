//! Debian packages by name: which one a metapackage stands for, and its file.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ImageError;
use crate::cache::Sha256Hex;

const REMEDY: &str = "run apt-get update and look at apt's sources";

/// A package as apt's lists describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: Sha256Hex,
}

/// The package that `metapackage` depends on and whose name begins with `prefix`. Brings apt's lists up to date when they
/// do not know it, as on a fresh machine.
pub(crate) fn resolve(metapackage: &str, prefix: &str) -> Result<Package, ImageError> {
    if let Ok(package) = look_up(metapackage, prefix) {
        return Ok(package);
    }
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    look_up(metapackage, prefix)
}

/// Downloads the package's file into `folder` and checks it against the hash in apt's lists.
pub(crate) fn download(package: &Package, folder: &Path) -> Result<PathBuf, ImageError> {
    let exact = format!("{}={}", package.name, package.version);
    // As root apt would drop to a user of its own, who cannot write here.
    run(Command::new("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root", &exact])
        .current_dir(folder))?;
    let missing = || ImageError::unusable(&exact, "apt-get download left no .deb file", REMEDY);
    let file = deb_in(folder).ok_or_else(missing)?;
    let content = std::fs::read(&file).map_err(ImageError::file("read", &file))?;
    if Sha256Hex::of(&content) == package.sha256 {
        return Ok(file);
    }
    Err(ImageError::unusable(&exact, "the file does not have the hash that apt's lists give", REMEDY))
}

/// Unpacks a package's files into `folder`.
pub(crate) fn unpack(deb: &Path, folder: &Path) -> Result<(), ImageError> {
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(folder)).map(drop)
}

fn look_up(metapackage: &str, prefix: &str) -> Result<Package, ImageError> {
    let depends = run(Command::new("apt-cache").args(["depends", metapackage]))?;
    let unknown = || ImageError::unusable(metapackage, format!("apt knows no {prefix}* behind it"), REMEDY);
    let name = dependency(&depends, prefix).ok_or_else(unknown)?;
    let shown = run(Command::new("apt-cache").args(["show", "--no-all-versions", name]))?;
    let field = |field: &str| {
        let missing = || ImageError::unusable(name, format!("apt's lists give no {field}"), REMEDY);
        record_field(&shown, field).map(str::to_owned).ok_or_else(missing)
    };
    Ok(Package { name: name.to_owned(), version: field("Version")?, sha256: Sha256Hex(field("SHA256")?) })
}

fn dependency<'a>(depends: &'a str, prefix: &str) -> Option<&'a str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
}

fn record_field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn deb_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == "deb"))
}

fn run(command: &mut Command) -> Result<String, ImageError> {
    // Parsing needs apt's untranslated words.
    crate::tool::run(command.env("LC_ALL", "C"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_package_is_read_from_apts_words() {
        let depends =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: linux-doc\n";
        assert_eq!(dependency(depends, "linux-image-"), Some("linux-image-6.1.0-56-cloud-amd64"));
        let record = "Package: x\nVersion: 6.1.192-2\nSHA256: e7d0\n";
        assert_eq!(record_field(record, "SHA256"), Some("e7d0"));
        assert_eq!(record_field(record, "SHA"), None);
    }
}
