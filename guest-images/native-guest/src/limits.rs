//! Bounds of the device work, with unit and reason.

/// Largest request to a disk, in bytes: what common drivers send at most without merging.
pub const MAX_REQUEST_BYTES: usize = 128 << 10;

/// Most requests of one job under way: each takes up to four of a queue's 256 descriptors.
pub const MAX_DEPTH: usize = 64;
