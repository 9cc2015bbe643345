//! Every bound of this crate with its unit and its reason.

use std::time::Duration;

/// Bytes of a question or answer: a full record is below 4 KiB.
pub const FRAME_BYTES: usize = 64 << 10;
/// Questions one connection may have open; a node asks for one VM at a time, a few in flight.
pub const STREAMS: u32 = 64;
/// Connections at a time; each node keeps one, and leaves a dead one behind for [`IDLE`] at most.
pub const CONNECTIONS: usize = 1024;
/// A connection that says nothing for this long is dropped.
pub const IDLE: Duration = Duration::from_secs(3);
/// Interval of keep-alives, so that a dead connection is noticed before it is needed.
pub const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A question without an answer for this long is given up; the asker decides whether to ask again.
pub const ANSWER: Duration = Duration::from_secs(1);
/// Waiting for a handshake before the next try.
pub const CONNECT: Duration = Duration::from_millis(500);
/// Pause between tries to connect.
pub const RETRY: Duration = Duration::from_millis(50);
/// Questions that may wait for a connection; older ones are useless by then.
pub const QUEUE: usize = 32;
