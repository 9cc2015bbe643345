//! Where missing pages come from. A snapshot file is one source; the host a VM is moving away from can be another.

use std::error::Error;

use crate::index::Located;
use crate::limits::EXTENT_PAGES_MAX;
use crate::read_at::ReadAt;
use crate::reader::Snapshot;

/// Pages that are best fetched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of the first one.
    pub first_page: u64,
    /// How many; at most [`EXTENT_PAGES_MAX`] unless they are known to be zero.
    pub pages: u64,
    /// They are known to be zero, so nothing has to be fetched.
    pub zeros: bool,
}

/// What came for an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The buffer holds the contents.
    Data,
    /// All pages are zero; the buffer holds anything.
    Zeros,
}

/// Why pages could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch page {first_page} and those after it: {source}")]
pub struct FetchError {
    /// The first of the pages wanted.
    pub first_page: u64,
    /// What the source of the pages says.
    pub source: Box<dyn Error + Send + Sync>,
}

/// A source of pages, used by several threads at once.
///
/// Whatever it returns goes to the guest, so it must have been verified, and an error must mean that the pages cannot be
/// had: retrying is the source's business. Both calls must end within a bounded time, or ending the restore hangs.
pub trait PageFetch: Send + Sync {
    /// The pages best fetched with `page`, itself among them. Costs no input or output; the same for every one of its pages.
    fn extent(&self, page: u64) -> Extent;

    /// Fetches a whole extent that is not known to be zero; `into` has its size.
    ///
    /// # Errors
    /// [`FetchError`]; the VM cannot go on without these pages.
    fn fetch(&self, first_page: u64, into: &mut [u8]) -> Result<Fetched, FetchError>;

    /// Pages there are, from 0 on.
    fn pages(&self) -> u64;
}

impl<R: ReadAt + Send + Sync> PageFetch for Snapshot<R> {
    fn extent(&self, page: u64) -> Extent {
        match self.index().locate(page) {
            Located::Data(run) => Extent { first_page: run.first_page, pages: run.pages, zeros: false },
            Located::Zeros { first_page, end } => Extent { first_page, pages: end - first_page, zeros: true },
        }
    }

    fn fetch(&self, first_page: u64, into: &mut [u8]) -> Result<Fetched, FetchError> {
        let failed = |source| FetchError { first_page, source };
        match self.index().locate(first_page) {
            Located::Zeros { .. } => Ok(Fetched::Zeros),
            Located::Data(run) => {
                self.read_run(&run, into).map_err(|error| failed(error.into()))?;
                Ok(Fetched::Data)
            }
        }
    }

    fn pages(&self) -> u64 {
        self.ram_pages()
    }
}

const _: () = assert!(EXTENT_PAGES_MAX.is_power_of_two(), "extents tile the pieces memory is saved in");
