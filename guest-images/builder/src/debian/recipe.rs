//! Everything that an image is made from, and the identities that follow from it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::DebianOptions;
use super::archive::Archive;
use crate::ImageError;
use crate::cache::Sha256Hex;
use crate::disk::gpt::Guid;
use crate::tool::command;

/// Raised whenever this crate makes different bytes from the same input.
const BUILDER: u32 = 1;

/// The inputs of one image.
#[derive(Debug)]
pub(crate) struct Recipe<'a> {
    pub(crate) options: &'a DebianOptions,
    pub(crate) archive: &'a Archive,
    /// Hash of all inputs: the name of the image in the cache.
    pub(crate) key: String,
}

#[derive(Serialize)]
struct Inputs<'a> {
    builder: u32,
    options: &'a DebianOptions,
    copied: Vec<Sha256Hex>,
    sources: &'a [String],
    packages: &'a super::archive::Packages,
    date: u64,
    tools: &'a [String],
}

impl<'a> Recipe<'a> {
    /// Gathers the inputs: reads what is to be copied, and asks the tools for their versions.
    pub(crate) fn gather(options: &'a DebianOptions, archive: &'a Archive) -> Result<Self, ImageError> {
        let tools = [version("mmdebstrap", "--version")?, version("mke2fs", "-V")?];
        Self::of(options, archive, &tools)
    }

    fn of(options: &'a DebianOptions, archive: &'a Archive, tools: &[String]) -> Result<Self, ImageError> {
        let copied =
            options.copies.iter().map(|copy| content_hash(&copy.source)).collect::<Result<_, _>>()?;
        let Archive { sources, packages, date, .. } = archive;
        let inputs = Inputs { builder: BUILDER, options, copied, sources, packages, date: *date, tools };
        let text = serde_json::to_vec(&inputs).map_err(|error| {
            ImageError::unusable("the image's options", error, "leave out what is unusual")
        })?;
        Ok(Self { options, archive, key: Sha256Hex::of(&text).0 })
    }

    /// An identity for `purpose` that nothing else has, and that the same inputs always give.
    pub(crate) fn id(&self, purpose: &str) -> Guid {
        let hash = Sha256::digest(format!("{}/{purpose}", self.key));
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Guid(id)
    }

    /// The root file system's UUID, as text.
    pub(crate) fn root_uuid(&self) -> String {
        let Guid(mut id) = self.id("root file system");
        // Version 8 of RFC 9562: made as its maker likes.
        id[6] = id[6] & 0x0f | 0x80;
        id[8] = id[8] & 0x3f | 0x80;
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

/// mke2fs tells its version on standard error.
fn version(program: &str, option: &str) -> Result<String, ImageError> {
    let output = command(program).arg(option).output();
    let output = output.map_err(|source| ImageError::Start { command: program.to_owned(), source })?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
}

/// Hash over the names, permissions and contents of a file or of all below a folder.
fn content_hash(source: &Path) -> Result<Sha256Hex, ImageError> {
    let mut listing = String::new();
    list(source, "", &mut listing)?;
    Ok(Sha256Hex::of(listing.as_bytes()))
}

fn list(path: &Path, name: &str, listing: &mut String) -> Result<(), ImageError> {
    let failed = |source| ImageError::File { action: "read", path: path.to_owned(), source };
    let metadata = path.symlink_metadata().map_err(failed)?;
    let mode = metadata.permissions().mode();
    if metadata.is_dir() {
        *listing += &format!("{name:?} {mode:o}\n");
        let mut names: Vec<_> =
            fs::read_dir(path).map_err(failed)?.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        return names.iter().try_for_each(|below| {
            list(&path.join(below), &format!("{name}/{}", below.to_string_lossy()), listing)
        });
    }
    let content = if metadata.is_symlink() {
        fs::read_link(path).map_err(failed)?.into_os_string().into_encoded_bytes()
    } else {
        fs::read(path).map_err(failed)?
    };
    *listing += &format!("{name:?} {mode:o} {}\n", Sha256Hex::of(&content).0);
    Ok(())
}

/// A command with nothing of the caller's environment that could show in an image.
pub(crate) fn clean(mut command: Command, date: u64) -> Command {
    const KEPT: [&str; 6] =
        ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LC_ALL", "C.UTF-8").env("HOME", "/root").env("DEBIAN_FRONTEND", "noninteractive");
    command.env("SOURCE_DATE_EPOCH", date.to_string()).env("E2FSPROGS_FAKE_TIME", date.to_string());
    command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::RootLogin;

    fn archive() -> Archive {
        let packages = [("libc6".to_owned(), "2.36".to_owned())].into();
        Archive { sources: vec!["deb x".into()], settings: Vec::new(), packages, date: 1 }
    }

    fn key(options: &DebianOptions, archive: &Archive) -> String {
        Recipe::of(options, archive, &["tool 1".to_owned()]).unwrap().key
    }

    #[test]
    fn every_input_shows_in_the_key() {
        let (options, archive) = (DebianOptions::default(), archive());
        let usual = key(&options, &archive);
        assert_eq!(usual, key(&options.clone(), &archive.clone()));
        let changed = |change: fn(&mut DebianOptions)| {
            let mut options = options.clone();
            change(&mut options);
            key(&options, &archive)
        };
        assert_ne!(usual, changed(|o| o.size *= 2));
        assert_ne!(usual, changed(|o| o.include.push("fio".into())));
        assert_ne!(usual, changed(|o| o.root = RootLogin::Passwordless));
        let mut newer = archive.clone();
        newer.packages.insert("libc6".to_owned(), "2.37".to_owned());
        assert_ne!(usual, key(&options, &newer));
        assert_ne!(usual, Recipe::of(&options, &archive, &["tool 2".to_owned()]).unwrap().key);
    }

    #[test]
    fn a_copy_is_known_by_its_content_and_not_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let options = |name: &str, content: &str| {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("file"), content).unwrap();
            let copies = vec![format!("{}:/opt", folder.path().join(name).display()).parse().unwrap()];
            DebianOptions { copies, ..DebianOptions::default() }
        };
        let archive = archive();
        let one = key(&options("a", "content"), &archive);
        assert_eq!(one, key(&options("b", "content"), &archive));
        assert_ne!(one, key(&options("b", "other"), &archive));
    }

    #[test]
    fn identities_differ_by_purpose_and_look_like_uuids() {
        let (options, archive) = (DebianOptions::default(), archive());
        let recipe = Recipe::of(&options, &archive, &[]).unwrap();
        assert_ne!(recipe.id("disk"), recipe.id("root"));
        let uuid = recipe.root_uuid();
        assert_eq!((uuid.len(), uuid.as_bytes()[14]), (36, b'8'));
        assert_eq!(uuid, Recipe::of(&options, &archive, &[]).unwrap().root_uuid());
    }
}
