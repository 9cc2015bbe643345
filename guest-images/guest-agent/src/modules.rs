//! Loading kernel modules in the order of a list.

use crate::sys;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The list: one path a line, dependencies first; empty lines and lines starting with `#` are skipped.
pub(crate) const LIST: &str = "/modules.list";

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    #[error(
        "the kernel refused module {path}; is it of this kernel, and are its dependencies listed before it?"
    )]
    Load { path: String, source: io::Error },
}

/// Loads what `list` names. A list that does not exist names nothing: the kernel may have it all built in.
pub(crate) fn load_all(list: &Path) -> Result<(), ModuleError> {
    let text = match fs::read_to_string(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|source| ModuleError::Read { path: list.display().to_string(), source })?,
    };
    paths(&text).try_for_each(load)
}

fn paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn load(path: &str) -> Result<(), ModuleError> {
    let file = File::open(path).map_err(|source| ModuleError::Read { path: path.to_owned(), source })?;
    match sys::load_module(&file) {
        // Loaded already, or built in.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|source| ModuleError::Load { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blanks_are_skipped() {
        let list = "# network\n/lib/a.ko\n\n  /lib/b.ko  \n";
        assert_eq!(paths(list).collect::<Vec<_>>(), ["/lib/a.ko", "/lib/b.ko"]);
    }

    #[test]
    fn no_list_is_no_module_and_a_missing_module_is_named() {
        load_all(Path::new("/nonexistent/modules.list")).unwrap();
        assert!(load("/nonexistent/a.ko").unwrap_err().to_string().contains("/nonexistent/a.ko"));
    }
}
