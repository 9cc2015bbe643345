//! Where inputs lie: committed ones beside this program's source, what runs find in a folder of the build.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::targets::Target;

/// The committed inputs of a target.
pub(crate) fn committed(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Folders of one target for a search.
#[derive(Debug)]
pub(crate) struct Folders {
    /// What searches on this machine have found, kept from run to run.
    pub(crate) found: PathBuf,
    /// The seeds, as files.
    pub(crate) seeds: PathBuf,
    /// The committed corpus. Findings go here: they are replayed from then on.
    pub(crate) committed: PathBuf,
    /// The words of the target's language, if it has one.
    pub(crate) dictionary: Option<PathBuf>,
    /// The input that is tried.
    pub(crate) current: PathBuf,
    /// What the last search said.
    pub(crate) log: PathBuf,
}

impl Folders {
    /// Makes them below `work`, and writes seeds and dictionary.
    pub(crate) fn new(target: &Target, work: &Path) -> Result<Folders> {
        let [found, seeds, dictionaries, logs] =
            ["found", "seeds", "dictionaries", "logs"].map(|kind| work.join(kind));
        let folders = Folders {
            found: found.join(target.name),
            seeds: seeds.join(target.name),
            committed: committed(target),
            dictionary: (!target.words.is_empty()).then(|| dictionaries.join(target.name)),
            current: work.join("current"),
            log: logs.join(target.name),
        };
        for folder in [&folders.found, &folders.seeds, &folders.committed, &dictionaries, &logs] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        for (number, seed) in (target.seeds)().iter().enumerate() {
            write(&folders.seeds.join(format!("seed-{number}")), seed)?;
        }
        if let Some(file) = &folders.dictionary {
            write(file, dictionary(target.words).as_bytes())?;
        }
        Ok(folders)
    }
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// In libFuzzer's syntax: one quoted word a line.
fn dictionary(words: &[&str]) -> String {
    let mut text = String::new();
    for word in words {
        text.push('"');
        for byte in word.bytes() {
            // Writing into a string cannot fail.
            let _ = match byte {
                b'"' | b'\\' => write!(text, "\\{}", char::from(byte)),
                b' '..=b'~' => write!(text, "{}", char::from(byte)),
                other => write!(text, "\\x{other:02x}"),
            };
        }
        text.push_str("\"\n");
    }
    text
}

/// The files of a folder in order of their names; none where there is no folder.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{INPUT_BYTES, KEPT_BYTES};
    use crate::targets::ALL;

    #[test]
    fn words_are_quoted_as_libfuzzer_wants_them() {
        assert_eq!(dictionary(&["a b", "\"x\"\r\n", "\\"]), "\"a b\"\n\"\\\"x\\\"\\x0d\\x0a\"\n\"\\\\\"\n");
    }

    #[test]
    fn the_corpus_has_folders_of_targets_only_and_stays_small() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let mut total = 0;
        for folder in files(&root).unwrap().into_iter().filter(|path| path.is_dir()) {
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(Target::find(&name).is_some(), "{name} is no target");
            for file in files(&folder).unwrap() {
                let bytes = fs::metadata(&file).unwrap().len();
                assert!(bytes <= KEPT_BYTES, "{} has {bytes} bytes", file.display());
                total += bytes;
            }
        }
        assert!(total <= 2 << 20, "the corpus has {total} bytes");
    }

    #[test]
    fn seeds_are_within_the_length_of_their_target() {
        for target in ALL {
            assert!(target.bytes_max >= INPUT_BYTES);
            for seed in (target.seeds)() {
                assert!(seed.len() <= target.bytes_max, "{}: {} bytes", target.name, seed.len());
            }
        }
    }
}
