//! What can be wrong with a spec: file, field, reason, remedy.

use std::path::PathBuf;

use crate::devices::net::TapError;

/// Why a VM spec is refused. Nothing has been started.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The spec file cannot be read.
    #[error("cannot read VM spec {}: {source}; check the path", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The spec file is too large to be one.
    #[error("VM spec {} has {bytes} bytes, more than any spec; is it another file?", path.display())]
    TooLarge {
        /// Its path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is not TOML, or has fields of the wrong kind or name.
    #[error("VM spec {} cannot be understood: {source}", path.display())]
    Syntax {
        /// Its path.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A field has a value that cannot be.
    #[error("VM spec: {field} = {value:?} {reason}; {remedy}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// A tap that is to be inherited cannot be used.
    #[error("VM spec: {0}")]
    Tap(TapError),
    /// A file that a field names cannot be used.
    #[error("VM spec: {field} = {} {reason}; {remedy}", path.display())]
    File {
        /// The field.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
}
