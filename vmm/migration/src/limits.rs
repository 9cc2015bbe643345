//! Every bound of live migration, with its unit and its reason.

use std::time::Duration;

/// Longest description of a machine (CPUID and registers as JSON), bytes; a real one has about 20 KiB.
pub const FINGERPRINT_BYTES_MAX: usize = 1 << 20;

/// Disks a description may name: more than any spec has.
pub const DISKS_MAX: usize = 64;

/// Longest serial number of a disk, bytes.
pub const SERIAL_BYTES_MAX: usize = 64;

/// Longest machine state, bytes: what `endophyte-vmm` accepts for restoring.
pub const STATE_BYTES_MAX: usize = 4 << 20;

/// Longest reason told to the other side, bytes: a refusal may list many differences.
pub const REASON_BYTES_MAX: usize = 64 << 10;

/// Pages of one batch (1 MiB): large enough that a message costs nothing, small enough that a cancel waits for few.
pub const BATCH_PAGES_MAX: usize = 256;

/// Pages pushed at a time in post-copy (256 KiB): a page that the guest waits for queues behind at most a few of these.
pub const PUSH_PAGES: usize = 64;

/// Pushed batches under way in post-copy (2 MiB), for the same reason.
pub const PUSHES_UNDER_WAY: usize = 8;

/// Pages fetched for one fault (64 KiB): neighbours are likely next, and 64 KiB take half a millisecond at 1 Gbit/s.
pub const WANT_PAGES_MAX: u64 = 16;

/// Threads of the destination that fetch pages the guest waits for: each hides one round trip.
pub const FAULT_THREADS: usize = 4;

/// Runs of missing pages in one message (1.5 MiB).
pub const RUNS_MAX: usize = 1 << 17;

/// Most rounds of pre-copy: a bound for what `STALLED_ROUNDS_MAX` does not end.
pub const ROUNDS_MAX: u32 = 60;

/// Rounds in a row that leave no less behind than the best before, until pre-copy gives up: the guest dirties faster than
/// the link carries. One such round may be a burst.
pub const STALLED_ROUNDS_MAX: u32 = 6;

/// A round makes progress if it leaves less than this part of the best so far, per cent.
pub const PROGRESS_PERCENT: u64 = 95;

/// Bytes a round must have moved for its bandwidth to count: shorter ones measure the scheduler.
pub const BANDWIDTH_SAMPLE_BYTES: u64 = 1 << 20;

/// Downtime aimed at unless told otherwise.
pub const DOWNTIME_DEFAULT: Duration = Duration::from_millis(100);

/// Longest downtime that may be asked for. Beyond it, stopping the VM and starting it elsewhere is the honest way.
pub const DOWNTIME_MAX: Duration = Duration::from_secs(60);

/// The destination answers an offer within this.
pub const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Each side says that it is there this often.
pub const BEAT_EVERY: Duration = Duration::from_millis(200);

/// Without a word for this long the other side counts as lost. The guest may stand all the while, so it is short; busy
/// processors are seen to hold a process up for a second.
pub const SILENCE: Duration = Duration::from_secs(3);

/// Sending the last pages may take this long beyond the downtime aimed at; then the guest goes on here.
pub const FINAL_WAIT: Duration = Duration::from_secs(15);

/// The destination restores within this, from the moment everything was sent.
pub const READY_WAIT: Duration = Duration::from_secs(20);

/// The destination says that it runs, or will not, within this of Go; then the source says that it does not know.
pub const RUNNING_WAIT: Duration = Duration::from_secs(15);

/// The source says Go within this of Ready: its disks have to be written out. A destination that waits in vain ends.
pub const GO_WAIT: Duration = Duration::from_secs(60);

/// A page wanted in post-copy arrives within this, or the VM is lost.
pub const WANT_WAIT: Duration = Duration::from_secs(10);

/// In post-copy the destination says that it has everything within this of the last page pushed.
pub const COMPLETE_WAIT: Duration = Duration::from_secs(60);

const _: () = assert!(GO_WAIT.as_secs() > RUNNING_WAIT.as_secs(), "a destination outwaits a slow disk");
