//! Every bound of what benches share, with its unit and its reason.

use std::time::Duration;

/// Until the guest must have said or answered something: a busy machine is slow, a guest that hangs never answers.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a wait may last before a signal to stop is noticed.
pub const NOTICE: Duration = Duration::from_millis(100);

/// Console output kept for messages, bytes.
pub const CONSOLE_BYTES_MAX: usize = 64 * 1024;

/// Lines of a VMM's standard error that are quoted when it fails.
pub const STDERR_LINES: usize = 5;

/// A new connection is tried this often while a restored guest does not answer.
pub const KNOCK_EVERY: Duration = Duration::from_millis(2);

/// Connections being tried at a time. A slow restore lasts longer than this many, and a guest that wakes to hundreds would be
/// measured at answering those.
pub const KNOCKS_MAX: usize = 16;

/// Processes of one VMM that are looked at: a sandbox and its helpers are a handful.
pub const FAMILY_MAX: usize = 64;

/// Until a pair's guest must be protected or taken over: 8 GiB have to be touched and sent before.
pub const PAIR_PATIENCE: Duration = Duration::from_secs(120);

/// How often a pair's timelines are looked at; the active writes its figures ten times a second.
pub const LOOK: Duration = Duration::from_millis(20);
