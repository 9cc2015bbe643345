//! Bounds of the builder, each with its unit and its reason.

/// Largest uncompressed kernel accepted, in bytes: Debian's is about 60 MiB.
pub const VMLINUX_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Uncompressed size of one block of the legacy LZ4 format, in bytes, as the format fixes it.
pub const LZ4_LEGACY_BLOCK_BYTES: usize = 8 * 1024 * 1024;
