//! Why a process cannot be confined.

use std::io;
use std::path::PathBuf;

/// Why the sandbox cannot be entered. The VM must not run then, unless without a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Threads that exist already would stay outside.
    #[error(
        "the sandbox must be entered by the only thread, there are {threads}; this is a mistake of the program"
    )]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// The kernel refuses.
    #[error("the sandbox cannot {action}: {source}; --no-sandbox runs the VM without one")]
    Refused {
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Landlock refuses.
    #[error("the sandbox cannot restrict files: {0}; --no-sandbox runs the VM without one")]
    Landlock(#[from] landlock::RulesetError),
    /// A filter was not taken.
    #[error(
        "the sandbox cannot filter system calls: {0}; use a kernel with CONFIG_SECCOMP_FILTER, or --no-sandbox"
    )]
    Filter(#[from] seccompiler::Error),
    /// There is no such user.
    #[error("--user {name:?}: {reason}; give a name of /etc/passwd, or UID or UID:GID")]
    User {
        /// As it was given.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The user could not use the VM's files.
    #[error("user {uid} cannot {} {}; give it the right to (chown, chmod), also to the folders above", if *write { "write" } else { "read" }, path.display())]
    Unreachable {
        /// Which user.
        uid: u32,
        /// Which file.
        path: PathBuf,
        /// It is to be written.
        write: bool,
    },
    /// The control group.
    #[error("--cgroup {}: cannot {action}: {source}; {remedy}", path.display())]
    Cgroup {
        /// Its folder.
        path: PathBuf,
        /// What failed.
        action: String,
        /// The kernel's answer.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

/// Names the failing step in a `map_err`.
pub(crate) fn refused<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError::Refused { action, source: source.into() }
}
