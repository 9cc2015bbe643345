//! Exit codes, mapped in one place.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | the guest switched itself off, or a signal ended the VM |
//! | 1 | something unexpected |
//! | 2 | wrong usage of the command line |
//! | 3 | the VM spec, a key or a ticket is wrong |
//! | 4 | this host cannot run the VM |
//! | 5 | the guest failed and its policy is to stop |
//! | 6 | another process is the active of this VM now |
//! | 7 | the arbiter or a peer cannot be reached, or refuses |
//! | 8 | a thread did what the sandbox forbids (`endophyte_sandbox::EXIT_VIOLATION`) |

use std::process::ExitCode;

/// Why the process ends, other than well.
#[derive(Debug)]
pub(crate) enum Failure {
    Unexpected,
    Spec,
    Host,
    Guest,
    Deposed,
    Peer,
}

/// An error with its exit code.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) failure: Failure,
    pub(crate) error: anyhow::Error,
}

impl Exit {
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("endophyte: {:#}", self.error);
        ExitCode::from(match self.failure {
            Failure::Unexpected => 1,
            Failure::Spec => 3,
            Failure::Host => 4,
            Failure::Guest => 5,
            Failure::Deposed => 6,
            Failure::Peer => 7,
        })
    }
}

impl<E: Into<anyhow::Error>> From<E> for Exit {
    fn from(error: E) -> Self {
        Self { failure: Failure::Unexpected, error: error.into() }
    }
}

/// Gives an error its exit code.
pub(crate) trait OrExit<T> {
    fn or_exit(self, failure: Failure) -> Result<T, Exit>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, failure: Failure) -> Result<T, Exit> {
        self.map_err(|error| Exit { failure, error: error.into() })
    }
}
