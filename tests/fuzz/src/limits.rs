//! Every bound of this program with its unit and its reason.

use std::time::Duration;

/// Bytes of the longest input of a target that does not say otherwise: longer ones only make mutation slow.
pub(crate) const INPUT_BYTES: usize = 4 << 10;
/// Seconds of work on one input: a peer that keeps a decoder busy for longer keeps a VM from its epoch.
pub(crate) const INPUT_SECONDS: u64 = 5;
/// Bytes of heap for one input beyond what was in use before it: the largest bound of any decoder's own, twice.
pub(crate) const INPUT_HEAP_BYTES: usize = 128 << 20;
/// MiB of memory of a fuzzing process: its corpus, its machine and what inputs leave behind.
pub(crate) const PROCESS_MIB: u64 = 2048;
/// A replay that says nothing for this long hangs. Far beyond [`INPUT_SECONDS`]: tests share their machine.
pub(crate) const REPLAY_PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of the largest input that is committed.
pub(crate) const KEPT_BYTES: u64 = 64 << 10;
/// Bytes of a target's inputs that are committed; there are some forty targets, and 2 MB for all.
pub(crate) const KEPT_BYTES_ALL: u64 = 48 << 10;
/// Of them, so many at most: a folder that a person can look through.
pub(crate) const KEPT_FILES: usize = 100;
/// Lines of a failed process's words that are shown.
pub(crate) const WORDS_LINES: usize = 30;
