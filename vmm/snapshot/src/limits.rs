//! Every bound of this crate, with its unit and its reason.

/// Bytes of a guest page: the unit of the index and of a fault.
pub const PAGE_BYTES: usize = 4096;

/// Largest metadata of a snapshot, bytes. A VM spec, a fingerprint and a time are a few KiB of JSON.
pub const METADATA_BYTES_MAX: usize = 1 << 20;

/// Largest machine state, bytes: what `endophyte-vmm` accepts for restoring.
pub const STATE_BYTES_MAX: usize = 4 << 20;

/// Most pages of RAM (1 TiB): above any VM, below where arithmetic on bytes could overflow.
pub const RAM_PAGES_MAX: u64 = 1 << 28;

/// Most pages of one extent, the unit of a checksum (256 KiB). A fault reads and checks one extent: small enough to
/// take about 100 us, large enough that the index is 0.01 % of dense data.
pub const EXTENT_PAGES_MAX: usize = 64;

/// Bytes collected before they are written or read in one go where the order is sequential.
pub const STREAM_BYTES: usize = 1 << 20;

/// A hole of at least this many pages (2 MiB) is left to the kernel when memory is restored lazily: a page touched there
/// is zero without us. Smaller ones are filled by us, for every hole left out splits the mapping once more.
pub const HOLE_PAGES_MIN: u64 = 512;

/// Most holes left to the kernel. A process may have 65,530 mappings; this leaves nearly all of them to others.
pub const HOLES_MAX: usize = 2048;

/// Pages of zeros placed for one fault in a hole (256 KiB). Each costs the kernel a cleared page of host memory.
pub const ZERO_PAGES_PER_FAULT: u64 = 64;

/// Pages asked about presence or filled with zeros in one go by the prefetcher.
pub const ZERO_PAGES_PER_TURN: u64 = 512;

/// Most threads that serve faults. A file needs one; a source behind a network hides its round trips with more.
pub const FAULT_THREADS_MAX: usize = 16;

/// Extents reported as failed before further ones are only logged: the first one stops the VM.
pub const ERRORS_REPORTED_MAX: usize = 16;

/// Longest fault the histogram tells apart, microseconds.
pub const FAULT_US_MAX: u64 = 60_000_000;

/// Longest version text of the writing build kept in a file, bytes.
pub const WRITER_BYTES_MAX: usize = 64;
