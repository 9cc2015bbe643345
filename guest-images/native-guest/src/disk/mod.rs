//! The first disk, and the work the guest does with it.
//!
//! ```text
//! request (one, with its buffer) ─> device (queues) ─> jobs: verify, bench ─> worker (which one runs); misc
//! ```

mod bench;
mod device;
mod misc;
mod request;
mod verify;
mod worker;

pub(crate) use worker::DiskWorker;
