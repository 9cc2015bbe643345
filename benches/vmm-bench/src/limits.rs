//! Every bound of the bench, with its unit and its reason.

use std::time::Duration;

/// Rounds in which every VMM has its turn: enough for a median that one bad turn does not move.
pub(crate) const ROUNDS: u32 = 5;

/// The same with `--quick`, which shows that everything works.
pub(crate) const ROUNDS_QUICK: u32 = 2;

/// Starts in a turn: 30 of each VMM in the usual number of rounds.
pub(crate) const STARTS_PER_TURN: u32 = 6;

/// Restores in a turn; each needs some hundred milliseconds.
pub(crate) const RESTORES_PER_TURN: u32 = 2;

/// How long a turn of requests or disk work lasts, seconds: longer than the host's caches and clocks need to settle.
pub(crate) const WORK_SECONDS: u64 = 3;

/// The same with `--quick`.
pub(crate) const WORK_SECONDS_QUICK: u64 = 1;

/// How long requests go on before they count.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// RAM of guests whose RAM is not what is measured, MiB.
pub(crate) const RAM_MIB: u32 = 256;

/// RAM of the guest that is restored, MiB.
pub(crate) const RESTORED_RAM_MIB: u32 = 512;

/// Pages of 4 KiB the restored guest has written before: 100 MiB.
pub(crate) const RESTORED_DIRTY_PAGES: u64 = 25_600;

/// The disk's size, bytes: beyond a disk's own cache of a few MiB, and written in a second or two.
pub(crate) const DISK_BYTES: u64 = 256 << 20;

/// How long the guest is left alone before its process' memory is counted.
pub(crate) const IDLE: Duration = Duration::from_secs(1);
