//! Bounds of the builder, each with its unit and its reason.

use std::time::Duration;

/// Largest uncompressed kernel accepted, in bytes: Debian's is about 60 MiB.
pub const VMLINUX_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Uncompressed size of one block of the legacy LZ4 format, in bytes, as the format fixes it.
pub const LZ4_LEGACY_BLOCK_BYTES: usize = 8 * 1024 * 1024;

/// How often a long step asks whether it shall go on: soon enough for somebody who pressed Ctrl-C.
pub const STOP_CHECK: Duration = Duration::from_millis(100);

/// How long a program that was asked to end may tidy up before it is killed.
pub const KILL_AFTER: Duration = Duration::from_secs(5);

/// Lines of a failed program's messages that are shown: apt's last error and what led to it.
pub const TOOL_TAIL_LINES: usize = 20;

/// Smallest disk, in bytes: a Debian with a kernel and nothing else takes half a GiB.
pub const DISK_BYTES_MIN: u64 = 1 << 30;

/// Largest disk built or converted, in bytes: ext4's metadata alone would take minutes beyond.
pub const DISK_BYTES_MAX: u64 = 16 << 40;

/// Bytes looked at together when zeros are left out; also qcow2's cluster size.
pub const PIECE_BYTES: usize = 64 * 1024;

/// Partition entries read from a table: four times what everybody writes.
pub const PARTITIONS_MAX: u32 = 512;
