//! The Primary spore: who is in the network and what its arbiter has decided, in an in-memory Raft group.
//!
//! Every node of a network runs one [`Spore`]. One or three of them vote (see [`voters`]), all others listen, and any of them
//! answers: a follower passes questions on to the leader. The rules by which records change are those of
//! [`mycelium_ram_core::record`]; here they are applied by a group, so that the arbiter survives the loss of a node.
//!
//! ```text
//!   found ──> sole voter ──others join──> one or three voters ──losses──> fewer
//!     sole voter stops, resumes:    begins the group anew from its disk
//!     other node stops, resumes:    enrols as a new Raft member, never under its old id
//!     all voters lost at once:      an operator decides whose state counts (`recover`)
//! ```
//!
//! Where to read on: [`state`] what is kept and how it changes, [`voters`] who votes, `plan.rs` the leader's steps, `serve.rs`
//! who may ask what, `disk.rs` what survives a loss of power, `start.rs` how a node comes to be.

mod book;
mod clock;
mod config;
mod disk;
mod error;
mod leader;
pub mod limits;
mod links;
mod member;
mod mesh;
mod plan;
pub mod raft;
mod report;
mod reporter;
mod serve;
mod spore;
mod start;
pub mod state;
mod status;
pub mod voters;
mod wire;

pub use clock::Clock;
pub use config::{Handler, SporeConfig};
pub use error::{SporeError, StartError};
pub use mesh::{JOIN_ALPN, MeshError, NODE_ALPN};
pub use raft::Timing;
pub use report::{NodeReport, Reported};
pub use spore::Spore;
pub use status::{MemberStatus, Status};

/// Entry points for a fuzzer.
#[cfg(feature = "fuzzing")]
pub use wire::fuzz_frames;
