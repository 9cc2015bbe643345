//! Archives in cpio's newc format, which the kernel unpacks as initramfs.
//!
//! The same content always gives the same bytes: entries are sorted, owned by root, dated 1970, numbered from 1.

use std::collections::BTreeMap;

use crate::ImageError;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    content: Vec<u8>,
}

impl Archive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file with the folders above it; `path` is absolute, `mode` its permission bits. A second file of the same
    /// path replaces the first.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.add(path, REGULAR | (mode & 0o7777), content.into())
    }

    /// Adds a symbolic link to `target`, with the folders above it.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path, SYMLINK | 0o777, target.into())
    }

    /// Adds an empty folder, with the folders above it.
    pub fn folder(&mut self, path: &str) -> &mut Self {
        self.add(path, DIRECTORY | 0o755, Vec::new())
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// [`ImageError::Unusable`] for an entry of 4 GiB or more, which the format cannot say.
    pub fn finish(&self) -> Result<Vec<u8>, ImageError> {
        let mut out = Vec::new();
        // Sorted by path, a folder precedes what it holds, as the kernel needs it.
        for (number, (path, entry)) in (1_u32..).zip(&self.entries) {
            append(&mut out, number, path, entry)?;
        }
        append(&mut out, 0, TRAILER, &Entry { mode: 0, content: Vec::new() })?;
        Ok(out)
    }

    fn add(&mut self, path: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            let folder = || Entry { mode: DIRECTORY | 0o755, content: Vec::new() };
            self.entries.entry(path[..at].to_owned()).or_insert_with(folder);
        }
        self.entries.insert(path.to_owned(), Entry { mode, content });
        self
    }
}

fn append(out: &mut Vec<u8>, number: u32, path: &str, entry: &Entry) -> Result<(), ImageError> {
    let too_big = |_| ImageError::unusable(path, "4 GiB or more", "leave it out of the initramfs");
    let size = u32::try_from(entry.content.len()).map_err(too_big)?;
    let name_size = u32::try_from(path.len() + 1).map_err(too_big)?;
    let links = 1;
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
    let fields = [number, entry.mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend_from_slice(b"070701");
    fields.iter().for_each(|field| out.extend_from_slice(format!("{field:08x}").as_bytes()));
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.content);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A reader of the format as the kernel reads it: fixed header, name, padding, content, padding.
    fn read(mut raw: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let field = |index: usize| {
                let at = 6 + index * 8;
                u32::from_str_radix(std::str::from_utf8(&raw[at..at + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&raw[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(raw[110..110 + name_size - 1].to_vec()).unwrap();
            let body = (110 + name_size).next_multiple_of(4);
            let end = (body + size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(raw.len(), end);
                return entries;
            }
            entries.push((name, mode, raw[body..body + size].to_vec()));
            raw = &raw[end..];
        }
    }

    #[test]
    fn folders_come_before_what_they_hold() {
        let mut archive = Archive::new();
        archive.file("/a/b/c", 0o755, b"x".to_vec()).symlink("/a/link", "b/c").folder("/proc");
        let entries = read(&archive.finish().unwrap());
        let names: Vec<_> = entries.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(
            names,
            [
                ("a", 0o040_755),
                ("a/b", 0o040_755),
                ("a/b/c", 0o100_755),
                ("a/link", 0o120_777),
                ("proc", 0o040_755)
            ]
        );
    }

    #[test]
    fn order_of_adding_does_not_show() {
        let (mut one, mut other) = (Archive::new(), Archive::new());
        one.file("/x", 0o644, b"1".to_vec()).file("/y", 0o644, b"2".to_vec());
        other.file("/y", 0o644, b"2".to_vec()).file("/x", 0o644, b"1".to_vec());
        assert_eq!(one.finish().unwrap(), other.finish().unwrap());
    }

    proptest! {
        #[test]
        fn contents_come_back(files in prop::collection::btree_map("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..50), 0..6)) {
            let mut archive = Archive::new();
            for (name, content) in &files {
                archive.file(name, 0o600, content.clone());
            }
            let back = read(&archive.finish().unwrap()).into_iter().map(|(name, _, content)| (name, content));
            prop_assert_eq!(back.collect::<BTreeMap<_, _>>(), files);
        }
    }
}
