//! Every bound of the bench, with its unit and its reason.

use std::time::Duration;

/// Rounds in which everybody has a turn: enough for a median that one bad turn does not move.
pub(crate) const ROUNDS: u32 = 3;
/// The same with `--quick`, which shows that everything works.
pub(crate) const ROUNDS_QUICK: u32 = 1;

/// How long a turn of work lasts, seconds.
pub(crate) const WORK_SECONDS: u64 = 3;
/// The same with `--quick`.
pub(crate) const WORK_SECONDS_QUICK: u64 = 1;

/// How long work goes on before it counts: epochs, shadow and hot pages have settled by then.
pub(crate) const WARM_UP: Duration = Duration::from_millis(700);

/// How long an idle VM is watched, seconds.
pub(crate) const IDLE_SECONDS: u64 = 10;

/// How long a busy host is watched for false alarms with `--quick`.
pub(crate) const SOAK_QUICK: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
pub(crate) const SOAK_STEP: Duration = Duration::from_secs(5);

/// RAM of guests whose RAM is not what is measured, MiB: room for 64 Ki dirty pages and the `cold` pattern's sixteenfold region
/// of smaller sets.
pub(crate) const RAM_MIB: u32 = 512;

/// A guest writes a gigabyte in a second or two.
pub(crate) const FILL_PATIENCE: Duration = Duration::from_secs(60);

/// Keys the clients write and read.
pub(crate) const KEYS: u64 = 10_000;

/// Bytes of a reply the client reads at a time.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Longest wait for a reply: beyond it the guest is lost.
pub(crate) const REPLY_PATIENCE: Duration = Duration::from_secs(10);

/// Longest epoch of a guest that works, ours by default; COLO gets the same.
pub(crate) const EPOCH: Duration = Duration::from_millis(25);
