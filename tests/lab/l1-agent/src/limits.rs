//! Bounds of the control channel, each with its unit and its reason.

/// Largest JSON header of a frame in bytes: argument lists and environments fit, a runaway length does not.
pub const HEADER_BYTES_MAX: u32 = 256 * 1024;

/// Largest raw part of a frame in bytes: bounds what either end buffers; longer files travel in several frames.
pub const BLOB_BYTES_MAX: u32 = 1024 * 1024;

/// Bytes of a process's output carried by one frame: small enough that a reply never waits long behind output.
pub const OUTPUT_CHUNK_BYTES: usize = 16 * 1024;

/// Datagrams sent by one `Ping` before it gives up: spread over the order's time limit.
pub const PING_ATTEMPTS: u32 = 10;
