//! A key-value engine that speaks RESP2, the protocol of Redis, over any byte stream.
//!
//! It needs `alloc` and nothing else: the native guest runs it on bare memory, the Linux guest agent as an
//! ordinary process, and the test client links its [`digest`] so that both ends compute the same fingerprint.
//!
//! Bytes flow one way through it:
//!
//! ```text
//! socket ─> Session::feed ─> resp::Parser ─> Engine::execute ─> Session::output ─> socket
//!                                                │
//!                                                └─ Host: clocks, page dirtying, power
//! ```
//!
//! Nothing here waits, reads a clock or allocates without a bound; the bounds are in [`limits`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod commands;
pub mod digest;
pub mod dirty;
mod engine;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod host;
pub mod limits;
pub mod resp;
mod session;
mod store;

pub use digest::{StoreDigest, entry_digest};
pub use engine::Engine;
#[cfg(feature = "fuzzing")]
pub use fuzzing::fuzz_resp;
pub use host::{BalloonPages, Clocks, Control, Host, HostRefusal, MemoryInfo, NoHost, SECTOR_BYTES};
pub use session::Session;
pub use store::{Store, StoreFull};
