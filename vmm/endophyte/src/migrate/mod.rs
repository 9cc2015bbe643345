//! Live migration between two `endophyte run` processes: the drivers of what the crate `endophyte-migration` decides.
//!
//! The source copies memory from a thread of its own while [`crate::plain`] keeps the VM; the switch happens in the thread that
//! keeps the VM, so that nothing else can pause or resume it meanwhile. docs/migration.md tells what is lost when what fails.

mod copy;
mod desk;
mod destination;
mod keeper;
mod peer;
mod remote;
mod serve;
mod source;
mod words;

pub(crate) use desk::Bell;
pub(crate) use destination::{Host, INCOMING, Incoming};
pub(crate) use keeper::Keeper;
pub(crate) use words::Wish;
