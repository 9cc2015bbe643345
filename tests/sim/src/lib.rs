//! Seeded simulator of the failover protocol with an oracle.
//!
//! One seed is one run: a small world with nodes, paths, an arbiter, clients and a guest whose every answer tells its
//! whole past. The core's state machines are driven as the real driver drives them, faults strike at the protocol's
//! steps, everything heals, and the [`oracle`] judges what was seen from outside.
//!
//! Read in this order: [`guest`] (what is protected), [`scenario`] (what is done to it), [`process`] (the driver around
//! the core), [`world`] (everything around processes), [`oracle`] (the promises).

pub mod clock;
pub mod effect;
pub mod guest;
pub mod hunt;
pub mod limits;
pub mod net;
pub mod oracle;
pub mod process;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod stats;
pub mod trace;
pub mod world;

pub use run::{Outcome, run};
