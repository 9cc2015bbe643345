//! What can go wrong with an image, told with its input, its reason and a remedy.

use std::io;
use std::path::PathBuf;

/// Failure to fetch, build, read or convert an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The machine lacks programs.
    #[error("missing {0}")]
    Missing(String),
    /// The work needs rights that this process lacks.
    #[error("{0} needs root: run it with sudo")]
    NotRoot(&'static str),
    /// An option cannot be followed.
    #[error("{option} {value:?}: {reason}")]
    Option {
        /// The option as it is written on the command line.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it must be.
        reason: String,
    },
    /// A file or folder could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An outside program could not be started.
    #[error("cannot run {command}")]
    Start {
        /// The command line.
        command: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An outside program reported failure.
    #[error("{command} failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said, trimmed.
        stderr: String,
    },
    /// Something fetched or built is not what it should be.
    #[error("{what} is unusable: {reason}; {remedy}")]
    Unusable {
        /// The file, package or module.
        what: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The caller wanted no more.
    #[error("interrupted; nothing is left behind")]
    Interrupted,
}

impl ImageError {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Something that must be fetched or built again.
    pub(crate) fn unusable(what: impl Into<String>, reason: impl ToString, remedy: &'static str) -> Self {
        Self::Unusable { what: what.into(), reason: reason.to_string(), remedy }
    }

    /// An option that cannot be followed.
    pub(crate) fn option(option: &'static str, value: impl ToString, reason: impl ToString) -> Self {
        Self::Option { option, value: value.to_string(), reason: reason.to_string() }
    }
}
