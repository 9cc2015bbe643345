//! The image's files while they still lie in a folder of this machine: installing packages, and running the image's own programs.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::archive::{Packages, wanted};
use super::options::CopyIn;
use super::recipe::{Recipe, clean};
use crate::tool::{Said, command, run, run_watched};
use crate::{ImageError, Observer};

/// Runs in mount and process namespaces of its own: whatever ends it takes all mounts and processes along.
const IN_TREE: &str = r#"
mount -t proc proc "$1/proc"
mount -t sysfs sys "$1/sys"
mount --rbind /dev "$1/dev"
if [ -f /etc/resolv.conf ] && [ -f "$1/etc/resolv.conf" ]; then mount --bind /etc/resolv.conf "$1/etc/resolv.conf"; fi
exec chroot "$1" /bin/sh -euc "$2"
"#;

/// The root folder of an image to be.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    date: u64,
}

impl Tree {
    /// Installs Debian into `work/tree`. `early` holds files that must be there before the packages: they configure
    /// themselves by them.
    pub(crate) fn install(
        work: &Path,
        recipe: &Recipe<'_>,
        early: &[(&str, String)],
        observer: &dyn Observer,
    ) -> Result<Self, ImageError> {
        let (root, overlay, sources) = (work.join("tree"), work.join("overlay"), work.join("sources.list"));
        for (path, text) in early {
            write_new(&overlay.join(path.trim_start_matches('/')), text)?;
        }
        write_new(&sources, &(recipe.archive.sources.join("\n") + "\n"))?;
        let mut mmdebstrap = clean(namespaced(), recipe.archive.date);
        mmdebstrap.args([
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--architectures=amd64",
        ]);
        mmdebstrap.args(
            recipe
                .archive
                .settings
                .iter()
                .map(|setting| format!("--aptopt={}", setting.trim_end_matches(';'))),
        );
        mmdebstrap.arg(format!("--include={}", wanted(recipe.options).collect::<Vec<_>>().join(",")));
        mmdebstrap.arg(format!("--essential-hook=cp -R {}/. \"$1\"", quoted(&overlay)));
        mmdebstrap.arg(&recipe.options.release).arg(&root).arg(&sources);
        run_watched(&mut mmdebstrap, observer, |line| {
            if let Some(step) = line.strip_prefix("I: ") {
                observer.step(step.trim_end_matches('.'));
            }
        })?;
        Ok(Self { root, date: recipe.archive.date })
    }

    /// Where the tree lies.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What no file of the image may be younger than.
    pub(crate) fn date(&self) -> u64 {
        self.date
    }

    /// A path of this machine for an absolute path of the image. Only for paths that no symbolic link is part of.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Writes a file, with the folders above it.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<(), ImageError> {
        let path = self.path(path);
        // A link would lead out of the tree.
        if path.is_symlink() {
            fs::remove_file(&path).map_err(ImageError::file("replace", &path))?;
        }
        write_new(&path, text)
    }

    /// Runs a command of the image, by its shell.
    pub(crate) fn run(
        &self,
        script: &str,
        secret: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Said, ImageError> {
        let mut command = clean(namespaced(), self.date);
        command
            .args(["--pid", "--fork", "--kill-child", "sh", "-euc", IN_TREE, "sh"])
            .arg(&self.root)
            .arg(script);
        command.envs(secret.map(|secret| ("SECRET", secret)));
        let failed = |error| match error {
            ImageError::Command { status, stderr, .. } => {
                ImageError::Command { command: format!("in the image: {script}"), status, stderr }
            }
            other => other,
        };
        run_watched(&mut command, observer, |_| {}).map_err(failed)
    }

    /// Copies a file or folder of this machine; it belongs to root in the image.
    pub(crate) fn copy_in(&self, copy: &CopyIn) -> Result<(), ImageError> {
        let (folder, name) = copy.dest.rsplit_once('/').unwrap_or(("", &copy.dest));
        let dest = self.folder(folder)?.join(name);
        // Into a folder of that name, as cp does it; but never through a link.
        let mut cp = Command::new("cp");
        cp.args(["-RP", "--no-target-directory", "--remove-destination", "--preserve=mode,links", "--"]);
        run(cp.arg(&copy.source).arg(&dest)).map(drop)
    }

    /// Finds a folder as a process of the image would, made when absent: links lead nowhere but into the image.
    fn folder(&self, path: &str) -> Result<PathBuf, ImageError> {
        let root = rustix::fs::openat(CWD, &self.root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let root = root.map_err(|error| ImageError::file("open", &self.root)(error.into()))?;
        let failed = |error: rustix::io::Errno| ImageError::file("create in the image", path)(error.into());
        let mut below = String::new();
        let mut folder = open_below(&root, ".").map_err(failed)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            below = format!("{below}/{part}");
            folder = match open_below(&root, &below) {
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, part, Mode::from_bits_truncate(0o755)).map_err(failed)?;
                    open_below(&root, &below)
                }
                found => found,
            }
            .map_err(failed)?;
        }
        let link = format!("/proc/self/fd/{}", folder.as_raw_fd());
        fs::read_link(&link).map_err(ImageError::file("read", link))
    }

    /// The packages that are installed, by dpkg's own account.
    pub(crate) fn packages(&self) -> Result<Packages, ImageError> {
        let path = self.path("/var/lib/dpkg/status");
        let text = fs::read_to_string(&path).map_err(ImageError::file("read", &path))?;
        Ok(text.split("\n\n").filter_map(package).collect::<BTreeMap<_, _>>())
    }
}

fn open_below(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn package(record: &str) -> Option<(String, String)> {
    let field = |name: &str| record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let here = field("Status")?.ends_with(" installed");
    here.then_some(())?;
    Some((field("Package")?.to_owned(), field("Version")?.to_owned()))
}

/// `unshare`, for a command whose mounts nobody else sees.
pub(crate) fn namespaced() -> Command {
    let mut command = command("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command
}

fn write_new(path: &Path, text: &str) -> Result<(), ImageError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(ImageError::file("create", folder))?;
    fs::write(path, text).map_err(ImageError::file("write", path))
}

/// For a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(folder: &Path) -> Tree {
        let root = folder.join("tree");
        fs::create_dir(&root).unwrap();
        Tree { root, date: 0 }
    }

    #[test]
    fn a_copy_follows_the_images_links_and_stays_inside() {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(folder.path());
        fs::create_dir_all(tree.path("/run")).unwrap();
        fs::create_dir_all(tree.path("/var")).unwrap();
        symlink("/run", tree.path("/var/run")).unwrap();
        symlink("/../../..", tree.path("/up")).unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "content").unwrap();
        for dest in ["/var/run/agent/file", "/up/etc/file"] {
            tree.copy_in(&CopyIn { source: source.clone(), dest: dest.to_owned() }).unwrap();
        }
        assert_eq!(fs::read_to_string(tree.path("/run/agent/file")).unwrap(), "content");
        assert_eq!(fs::read_to_string(tree.path("/etc/file")).unwrap(), "content");
    }

    #[test]
    fn dpkgs_account_tells_what_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(folder.path());
        let status = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\n\n\
            Package: b\nStatus: deinstall ok config-files\nVersion: 4\n";
        tree.write("/var/lib/dpkg/status", status).unwrap();
        assert_eq!(tree.packages().unwrap(), [("a".to_owned(), "1:2-3".to_owned())].into());
    }
}
