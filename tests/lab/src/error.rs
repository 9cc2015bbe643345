//! What can go wrong in the lab, told with its input, its reason and a remedy.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lab_agent::frame::FrameError;
use lab_agent::protocol::Refusal;

/// Failure of the lab itself, not of what is tested in it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The machine lacks a program.
    #[error("missing {0}")]
    Missing(String),
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
        /// What it said, trimmed.
        stderr: String,
    },
    /// Something fetched or built is not what it should be.
    #[error("{what} is unusable: {reason}; {remedy}")]
    Image {
        /// The file, package or module.
        what: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Kernel or guest could not be fetched or built.
    #[error(transparent)]
    Images(#[from] mycelium_images::ImageError),
    /// A lab network was to be laid where somebody else's may be.
    #[error("refusing to lay a lab network in this network namespace: {0}; enter a new one first")]
    NotPrivate(String),
    /// A host or network was asked for that cannot be.
    #[error("{what} is {asked}, but {bound}")]
    Config {
        /// The setting.
        what: &'static str,
        /// The value asked for.
        asked: String,
        /// What it must be.
        bound: String,
    },
    /// A host ended before it was ready, or while something was expected of it.
    #[error("host {host} is dead ({reason}); end of its console:\n{tail}")]
    HostDead {
        /// Name of the host.
        host: String,
        /// What is known about its end.
        reason: String,
        /// Last lines of its console and of the emulator's messages.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("{what}: nothing within {waited:?}; end of the log:\n{tail}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// For how long.
        waited: Duration,
        /// Last lines of the log concerned.
        tail: String,
    },
    /// The host's agent did not do what it was told.
    #[error("host {host} refused: {refusal}")]
    Refused {
        /// Name of the host.
        host: String,
        /// Its own words.
        refusal: Refusal,
    },
    /// The control channel carried something unexpected.
    #[error("control channel of host {host}: {source}")]
    Channel {
        /// Name of the host.
        host: String,
        /// What the channel said.
        #[source]
        source: FrameError,
    },
}

impl LabError {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// An image that must be fetched or built again.
    pub(crate) fn image(what: impl Into<String>, reason: impl ToString, remedy: &'static str) -> Self {
        Self::Image { what: what.into(), reason: reason.to_string(), remedy }
    }
}
