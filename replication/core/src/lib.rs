//! Pure core of epoch replication: no socket, no file, no KVM, no clock. Events, time and randomness come in, actions go
//! out, so a whole failover can be replayed from a seed.
//!
//! ```text
//!   guest writes page ─> PageSet ─> PageLedger ─> parts ─> Stager ─> whole epoch on the replica
//!                                                                        │ ack
//!   client <─ OutputQueue <──────────── Primary (commit) <───────────────┘
//!                  host dies ─> Detector ─> Replica ─> Swap to the arbiter: generation g+1 ─> guest goes on
//! ```
//!
//! Read in this order: [`record`] (what the arbiter decides), [`primary`] (commit and the output rule), [`replica`]
//! (acknowledgement and takeover), [`detector`] (what silence means), then the parts they use.

pub mod codec;
pub mod compress;
pub mod detector;
pub mod disk;
pub mod hand_over;
pub mod hot;
pub mod ids;
pub mod ingress;
pub mod limits;
pub mod message;
pub mod mode;
pub mod output;
pub mod pace;
pub mod page_codec;
pub mod pages;
pub mod primary;
pub mod record;
pub mod replica;
pub mod runs;
pub mod sabotage;
pub mod settle;
pub mod shadow;
pub mod stage;
pub mod state_codec;
pub mod time;

pub use ids::{EpochId, Generation, Incarnation, IngressSeq, Member, NodeId, OpId, PageIndex, VmId};
pub use pages::{PageLedger, PageSet};
pub use time::Time;
