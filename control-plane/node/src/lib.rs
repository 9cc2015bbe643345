//! A node's daemon.
//!
//! ```text
//!   CLI, shim ──gRPC──> api ──> member ──> Spore: the network, the arbiter's records
//!                        └────> vms ──> keeper, one per VM ──> endophyte process (outlives the daemon)
//!                                          │ reconcile: is a replica wanted, is it well?
//!                                          └─ place ──> other daemon: start a passive ──> its ticket
//! ```
//! Whoever runs a VM's guest drives its protection; after a takeover that is another node's daemon. Nothing about a VM's
//! placement is kept centrally: the arbiter's record says who runs it, and its node's daemon knows the rest.

mod api;
mod capacity;
mod config;
mod daemon;
mod disks;
mod entry;
mod group;
mod keeper;
pub mod limits;
mod peer;
mod place;
mod process;
mod turns;
mod vms;

pub use config::NodeConfig;
pub use daemon::{DaemonError, run};
#[cfg(feature = "fuzzing")]
pub use peer::{fuzz_peer, seeds_peer};
