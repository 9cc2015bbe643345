//! What can go wrong before and while memory is restored lazily.

use std::io;

use super::userfault::UserfaultError;
use crate::fetch::FetchError;

/// Why a lazy restore did not begin. The memory is empty then, or what it was; it can be restored eagerly.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel does not report page faults to us.
    #[error(transparent)]
    Userfault(#[from] UserfaultError),
    /// The memory is not the one the pages are for.
    #[error(
        "the memory does not fit the saved pages: {reason}; give the VM the RAM it had when it was saved"
    )]
    Regions {
        /// What does not fit.
        reason: String,
    },
    /// The kernel refused the mapping.
    #[error(
        "cannot {action} guest memory for a lazy restore: {source}; it must be a shared mapping of a memfd, not locked"
    )]
    Memory {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No thread or event to serve faults with.
    #[error("cannot start serving page faults: {source}; check the limits on threads and open files")]
    Service {
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why guest memory cannot be completed. The VM must be stopped: who touches a page that is not there waits.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// A page cannot be had from its source.
    #[error(
        "page {page} of guest memory cannot be restored: {source}; the VM stops, restore it from another copy"
    )]
    Fetch {
        /// The page.
        page: u64,
        /// Whether the VM is waiting for it; if not, it was to be fetched ahead.
        wanted: bool,
        /// Why.
        source: FetchError,
    },
    /// A page was had and the kernel did not take it.
    #[error(
        "page {page} cannot be put into guest memory: {source}; the VM stops, check the host's free memory"
    )]
    Place {
        /// The page.
        page: u64,
        /// Whether the VM is waiting for it.
        wanted: bool,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Faults are no longer served at all.
    #[error("page faults of the VM are no longer served: {reason}; the VM stops, restore it again")]
    Service {
        /// Why.
        reason: String,
    },
}
