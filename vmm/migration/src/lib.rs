//! Live migration without its sockets, clocks and machines: what source and destination say, when the source switches, and
//! who may run the guest.
//!
//! ```text
//!   source                                        destination
//!   Offer (machine, disks) ─────────────────────> like ours?
//!                          <───────────────────── Accept, or Refuse
//!   Pages, round by round; the guest runs ──────>
//!   pause
//!   Pages, or Missing (post-copy), Switch ──────> restore
//!                          <───────────────────── Ready
//!   let go of the disks
//!   Go ─────────────────────────────────────────> take the disks, resume
//!                          <───────────────────── Running
//!   end                    <── Want ─ Pages ──>   (post-copy, until Complete)
//! ```
//!
//! Before `Go` leaves, whatever fails has the source resume. After it, only word from the destination ends the source's
//! silence: `Running`, or `Stay`, by which it promises never to run. Without word the source stands, and says so
//! ([`source::State::Limbo`]): two guests of one memory and one disk are worse than none. [`Source`] and [`Destination`] hold
//! that rule; `tests/protocol.rs` takes every message and every step away from them.

pub mod batch;
pub mod destination;
pub mod digest;
pub mod downtime;
pub mod limits;
pub mod message;
pub mod rounds;
pub mod runs;
pub mod source;

pub use destination::Destination;
pub use digest::PageDigest;
pub use downtime::Downtime;
pub use message::Message;
pub use rounds::Rounds;
pub use source::Source;
