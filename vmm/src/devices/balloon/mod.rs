//! Balloon: virtio-balloon (device type 5). The host takes memory back, and the guest reports pages it does not use.
//!
//! ```text
//!   Machine::set_balloon ──> num_pages ──> guest takes pages off its own free lists
//!   inflate queue   page numbers ──┐
//!   reporting queue free ranges ───┴─> Reclaim: checked, sorted, merged ──> GuestRam::give_back ──> completion
//!   deflate queue   page numbers ────> checked; the pages fill again when they are touched
//!   statistics queue <── Machine::balloon asks, at most once a second
//! ```
//!
//! **Replicas.** A page given back reads as zero from that moment on, so it is marked as written before the guest hears
//! that the request is done, under the device's lock: a pause sees both or neither. The replica is told once that the
//! page is zero, in a few bytes. After that nobody writes it and it stays clean: it has left the set of pages an epoch
//! has to copy. A replica keeps memory for it all the same, so that a takeover never waits for memory.
//!
//! **Pages in use.** Nothing here checks that another device is not about to write the page, because the guest cannot
//! mean it: a driver that hands a buffer to a device owns the page until the device returns it, and the balloon's pages
//! come from the free lists. A guest that does it all the same harms itself: the write lands in the old page, which is
//! gone, or in a new one, and both are its own. Host memory is never touched, as devices reach RAM through a mapping
//! that stays as long as the machine.
//!
//! **Poison.** A guest that fills free pages with a pattern and checks it later says so (`PAGE_POISON`) with the
//! pattern. Free pages it reports may then become that pattern and nothing else, so they are given back only if it is
//! zero. Pages in the balloon are written afresh by the guest when they come out, and may become anything.
//!
//! **Queue numbers.** The standard counts queues as if all existed: reporting is number 4. Linux and QEMU, until
//! corrected, counted those that are in use: 3, or 2 without statistics. Number 3 is free page hinting, which is not
//! offered, so that both meanings can be served without asking which one is meant.

mod device;
mod metrics;
mod persist;
mod reclaim;
mod stats;

pub(crate) use device::BalloonDevice;
pub use device::BalloonInfo;
#[cfg(test)]
pub(crate) use device::{DEFLATE, INFLATE, REPORTING, STATS};
pub use metrics::BalloonMetrics;
pub use stats::BalloonStats;
