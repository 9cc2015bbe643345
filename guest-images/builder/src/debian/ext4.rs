//! Makes a file system out of a tree, the same bytes every time.
//!
//! debugfs lays one entry after the other in the order of their names, with the times we tell it. Writing through a mount
//! would show the kernel's allocation and the clock; `mke2fs -d` takes the order from the folder on the host and the time of
//! each inode's last change from the host's clock.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::recipe::clean;
use crate::tool::{command, run_watched};
use crate::{ImageError, Observer};

/// What the file system is known by.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) uuid: String,
    pub(crate) bytes: u64,
    /// In seconds since 1970; younger times become this one.
    pub(crate) date: u64,
}

/// Writes all below `tree` into a new file system in the file `target`, and checks it.
pub(crate) fn write(
    tree: &Path,
    target: &Path,
    identity: &Identity,
    observer: &dyn Observer,
) -> Result<(), ImageError> {
    let file = File::create(target).map_err(ImageError::file("create", target))?;
    file.set_len(identity.bytes).map_err(ImageError::file("write", target))?;
    let orders = target.with_extension("orders");
    let mut script = Script::new(identity.date, target.with_extension("attributes"));
    script.folder(tree)?;
    fs::write(&orders, script.finish()).map_err(ImageError::file("write", &orders))?;
    let tool = |program: &str| clean(command(program), identity.date);
    let extended =
        format!("hash_seed={},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0", identity.uuid);
    let mut make = tool("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-L", "root", "-U", &identity.uuid, "-E", &extended]);
    run_watched(make.arg(target), observer, |_| {})?;
    let mut fill = tool("debugfs");
    let said = run_watched(fill.arg("-w").arg("-f").arg(&orders).arg(target), observer, |_| {})?;
    // It ends well whatever happened, but says nothing on standard error beside its version.
    if let Some(complaint) = said.stderr.iter().find(|line| !line.starts_with("debugfs ")) {
        return Err(complained(complaint));
    }
    let mut check = tool("e2fsck");
    run_watched(check.args(["-f", "-n"]).arg(target), observer, |_| {}).map(drop)
}

fn complained(words: &str) -> ImageError {
    if words.contains("Could not allocate") || words.contains("No space") {
        return ImageError::option("--size", "", "the files do not fit; give a larger size");
    }
    ImageError::unusable("the file system", words, "report it with the command that built it")
}

/// Orders for debugfs, one a line.
struct Script {
    text: String,
    date: u64,
    /// Where values of extended attributes go; debugfs reads them from files.
    attributes: PathBuf,
    attribute_count: usize,
    /// First path and count of files with several names, by device and inode.
    linked: BTreeMap<(u64, u64), (String, u64)>,
    /// The folder the orders are in, as the image sees it.
    here: String,
}

impl Script {
    fn new(date: u64, attributes: PathBuf) -> Self {
        let (text, linked, here) = (String::new(), BTreeMap::new(), String::new());
        Self { text, date, attributes, attribute_count: 0, linked, here }
    }

    fn finish(mut self) -> String {
        for (path, count) in self.linked.values() {
            let _ = writeln!(self.text, "sif {} links_count {count}", quoted(path));
        }
        self.text
    }

    fn folder(&mut self, folder: &Path) -> Result<(), ImageError> {
        let entries = fs::read_dir(folder).map_err(ImageError::file("list", folder))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(ImageError::file("list", folder))?.file_name();
            names.push(name.into_string().ok().filter(|name| !name.contains('\n')).ok_or_else(|| {
                let remedy = "give files names in UTF-8 without line breaks";
                ImageError::unusable(folder.display().to_string(), "a file in it has an unusual name", remedy)
            })?);
        }
        names.sort();
        names.iter().try_for_each(|name| self.entry(&folder.join(name), name))
    }

    fn entry(&mut self, path: &Path, name: &str) -> Result<(), ImageError> {
        let metadata = path.symlink_metadata().map_err(ImageError::file("read", path))?;
        let word = quoted(name);
        if metadata.is_dir() {
            let above = self.here.len();
            let _ = write!(self.here, "/{name}");
            self.order(format_args!("mkdir {word}\ncd {word}"));
            self.folder(path)?;
            self.order(format_args!("cd .."));
            self.here.truncate(above);
        } else if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(ImageError::file("read", path))?;
            self.order(format_args!("symlink {word} {}", quoted(&target.to_string_lossy())));
        } else if !metadata.is_file() {
            // Sockets and devices are made by what uses them.
            return Ok(());
        } else if self.is_known(&metadata, name) {
            return Ok(());
        } else {
            self.order(format_args!("write {} {word}", quoted(&path.to_string_lossy())));
        }
        self.owner_and_times(&word, &metadata);
        self.extended_attributes(path, &word)
    }

    /// Links a file that is there already under another name.
    fn is_known(&mut self, metadata: &fs::Metadata, name: &str) -> bool {
        if metadata.nlink() == 1 {
            return false;
        }
        let here = format!("{}/{name}", self.here);
        let known = self.linked.entry((metadata.dev(), metadata.ino())).or_insert((here, 0));
        known.1 += 1;
        if known.1 == 1 {
            return false;
        }
        let _ = writeln!(self.text, "ln {} {}", quoted(&known.0), quoted(name));
        true
    }

    fn owner_and_times(&mut self, word: &str, metadata: &fs::Metadata) {
        self.order(format_args!("sif {word} mode 0{:o}", metadata.mode()));
        for (field, value) in [("uid", metadata.uid()), ("gid", metadata.gid())] {
            if value != 0 {
                self.order(format_args!("sif {word} {field} {value}"));
            }
        }
        let changed = u64::try_from(metadata.mtime()).unwrap_or(0).min(self.date);
        if changed != self.date {
            self.order(format_args!("sif {word} mtime @{changed}\nsif {word} atime @{changed}"));
        }
    }

    fn extended_attributes(&mut self, path: &Path, word: &str) -> Result<(), ImageError> {
        let failed =
            |error: rustix::io::Errno| ImageError::file("read the attributes of", path)(error.into());
        let mut names = [0_u8; 4096];
        let used = match rustix::fs::llistxattr(path, &mut names) {
            Err(rustix::io::Errno::NOTSUP) => return Ok(()),
            used => used.map_err(failed)?,
        };
        let mut names: Vec<&[u8]> =
            names[..used].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        for name in names {
            let mut value = [0_u8; 4096];
            let used = rustix::fs::lgetxattr(path, name, &mut value).map_err(failed)?;
            self.attribute_count += 1;
            let file = self.attributes.with_extension(self.attribute_count.to_string());
            fs::write(&file, &value[..used]).map_err(ImageError::file("write", &file))?;
            let name = String::from_utf8_lossy(name).into_owned();
            self.order(format_args!("ea_set -f {} {word} {name}", quoted(&file.to_string_lossy())));
        }
        Ok(())
    }

    fn order(&mut self, order: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{order}");
    }
}

/// A word for debugfs: in double quotes, with those inside doubled.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::observer::Unwatched;

    fn lay(root: &Path) {
        fs::create_dir_all(root.join("folder/below")).unwrap();
        fs::write(root.join("folder/a \"quoted\" name"), "content").unwrap();
        fs::set_permissions(root.join("folder/a \"quoted\" name"), fs::Permissions::from_mode(0o4751))
            .unwrap();
        fs::write(root.join("folder/one"), vec![7; 100_000]).unwrap();
        fs::hard_link(root.join("folder/one"), root.join("folder/below/other")).unwrap();
        symlink("/to/somewhere", root.join("link")).unwrap();
    }

    fn identity() -> Identity {
        let uuid = "3c5d2f60-1111-8222-8333-444455556666".to_owned();
        Identity { uuid, bytes: 16 << 20, date: 1_700_000_000 }
    }

    fn ask(image: &Path, question: &str) -> String {
        let output = command("debugfs").args(["-R", question]).arg(image).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let image = |name: &str| {
            let (tree, target) = (folder.path().join(name), folder.path().join(format!("{name}.ext4")));
            lay(&tree);
            write(&tree, &target, &identity(), &Unwatched).unwrap();
            target
        };
        let (one, other) = (image("one"), image("other"));
        assert!(fs::read(&one).unwrap() == fs::read(other).unwrap());
        let quoted = ask(&one, "stat \"folder/a \"\"quoted\"\" name\"");
        assert!(quoted.contains("Mode:  04751") && quoted.contains("ctime: 0x6553f100"), "{quoted}");
        assert!(ask(&one, "stat folder/below/other").contains("Links: 2"));
        assert!(ask(&one, "stat link").contains("/to/somewhere"));
    }

    #[test]
    fn a_tree_that_does_not_fit_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("big"), vec![1; 20 << 20]).unwrap();
        let error = write(&tree, &folder.path().join("disk.ext4"), &identity(), &Unwatched).unwrap_err();
        assert!(error.to_string().contains("--size"), "{error}");
    }
}
