//! Bounds of the lab, each with its unit and its reason.

use std::time::Duration;

/// How long a host may take from power-on to its agent's first word: about 4 s with two free cores, and CI has to build
/// something else at the same time.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(90);

/// How long the agent may take to answer an order; a host that is being starved of CPU still answers within this.
pub const ORDER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a program run by `exec` may take.
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(600);

/// Bytes of one log kept for searching; older lines remain in the log's file only.
pub const LOG_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Lines of a log shown with an error: enough for a kernel panic with its trace.
pub const TAIL_LINES: usize = 40;

/// Hosts one network has addresses and names for.
pub const HOSTS_MAX: usize = 8;

/// Replication paths one network has addresses and names for.
pub const PATHS_MAX: usize = 4;
