//! The rhizomorph link without its sockets: frames, reassembly, duplicate suppression, path judgement and scheduling.
//!
//! A link carries *bundles* (whole messages, exactly once) and *datagrams* (small, unreliable) over several *paths*,
//! each of them one QUIC connection. A bundle is cut into *stripes* of one size, and each stripe travels alone on
//! whichever path will finish it first:
//!
//! ```text
//! bundle ─> Outbox ─ earliest completion ─> path 0 ─> Reassembly ─> bundle
//!              ^                      └───> path 1 ──────^   │
//!              └── recalled when a path falls silent         └── ack once the application took it
//! ```
//!
//! Nothing here opens a socket, reads a clock or draws a random number. Time comes in as a [`Duration`] since any
//! fixed start, so every decision can be replayed.
//!
//! [`Duration`]: std::time::Duration

pub mod backoff;
pub mod codec;
pub mod dedup;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod ids;
pub mod limits;
pub mod liveness;
pub mod outbox;
pub mod path_model;
pub mod reassembly;
pub mod schedule;
pub mod stripe_set;
