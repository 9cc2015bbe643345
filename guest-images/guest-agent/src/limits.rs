//! Every bound of the agent, with its unit and its reason.

use std::time::Duration;

/// Simultaneous connections; one more is closed at once. Each holds at most its session's buffers.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// Bytes read from a connection in one turn, so that none starves the others.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// Share of the machine's memory the store may fill, in percent.
pub(crate) const STORE_PERCENT: u64 = 50;

/// Time between two tick lines on the console.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Time between two readings of the clocks: short against any step worth finding, long against a reading.
pub(crate) const CLOCK_SAMPLE: Duration = Duration::from_millis(1);

/// How long a network interface may take to appear once its driver is loaded.
pub(crate) const INTERFACE_WAIT: Duration = Duration::from_secs(10);

/// Time between two looks for it.
pub(crate) const INTERFACE_POLL: Duration = Duration::from_millis(10);

/// Shortest time between two slices of a dirtier with a rate, in nanoseconds, so that the CPU can sleep.
pub(crate) const DIRTY_TICK_NS: u64 = 1_000_000;
