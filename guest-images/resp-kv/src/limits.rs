//! Every bound of the engine, with its unit and its reason.

/// Longest key, in bytes. Real keys are far shorter; the bound keeps one entry from being all key.
pub const MAX_KEY_BYTES: usize = 4 << 10;

/// Longest value and longest single argument, in bytes. Covers `redis-benchmark -d 65536`.
pub const MAX_VALUE_BYTES: usize = 64 << 10;

/// Most arguments of one command, its name included: an MSET of 511 pairs.
pub const MAX_ARGS: usize = 1024;

/// Most bytes one command may take on the wire, which is also the most a connection buffers of its input.
pub const MAX_COMMAND_BYTES: usize = 256 << 10;

/// Longest `*N` or `$N` line, in bytes with its line end: a 20-digit number and room to spare.
pub const MAX_HEADER_LINE_BYTES: usize = 32;

/// Longest inline command, in bytes with its line end: what a person types.
pub const MAX_INLINE_BYTES: usize = 4 << 10;

/// Unsent reply bytes at which a connection stops executing commands until the peer has read some.
pub const OUTPUT_HIGH_WATER_BYTES: usize = 64 << 10;

/// Largest single reply, in bytes: with the mark above it bounds what a connection holds of its output.
pub const MAX_REPLY_BYTES: usize = 1 << 20;

/// Buffers a connection keeps between commands, in bytes; larger ones are given back once empty.
pub const KEPT_BUFFER_BYTES: usize = 32 << 10;

/// Bytes charged to an entry besides its key and value: table slot, two allocations and their headers.
pub const ENTRY_OVERHEAD_BYTES: usize = 96;

/// Most pages `DIRTY` accepts: 64 GiB, more than any guest here has, and free of overflow in every product.
pub const MAX_DIRTY_PAGES: u32 = 1 << 24;

/// Most pages written in one slice of the dirtier, so that the network is polled at least every few milliseconds
/// even when each first write costs a fault.
pub const DIRTY_SLICE_PAGES: u32 = 512;
